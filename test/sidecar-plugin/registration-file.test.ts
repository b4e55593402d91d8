import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { localSpecOf, localSpecSchema, type LocalSpec } from '../../sidecar-plugin/src/local/local-spec.ts'
import { RegistrationFile, type SavedServices } from '../../sidecar-plugin/src/local/registration-file.ts'
import { quietLog } from './fakes.ts'

async function directory(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'holdfast-'))
  t.after(() => rm(path, { recursive: true, force: true }))
  return path
}

function spec(service: string, over: object = {}): LocalSpec {
  return localSpecOf(localSpecSchema.parse({ service, port: 8080, ...over }))
}

function saved(registrations: readonly LocalSpec[], ports: Record<string, number> = {}): SavedServices {
  return { registrations, ports: new Map(Object.entries(ports)) }
}

test('what was saved is loaded again, every field of it', async (t) => {
  const path = join(await directory(t), 'deep', 'sidecar-7502.json')
  const specs = [
    spec('stock', {
      id: 'stock-1',
      protocol: 'grpc',
      weight: 7,
      zone: 'z-1',
      labels: { version: 'v2' },
      healthCheck: { type: 'http', path: '/up', interval: '250ms', timeout: '1.5s', unhealthyAfter: 2 },
    }),
    spec('prices'),
    spec('orders', { protocol: 'tcp', inboundPort: 17_432 }),
  ]
  await new RegistrationFile(path, quietLog).save(saved(specs, { orders: 17_432 }))
  assert.deepEqual(await new RegistrationFile(path, quietLog).load(), saved(specs, { orders: 17_432 }))
})

test('nothing but the file itself remains, and only its owner may read it', async (t) => {
  const path = await directory(t)
  const file = new RegistrationFile(join(path, 's.json'), quietLog)
  await Promise.all([file.save(saved([spec('a')])), file.save(saved([spec('b')]))])
  assert.deepEqual(await readdir(path), ['s.json'])
  assert.equal((await stat(join(path, 's.json'))).mode & 0o777, 0o600)
  assert.deepEqual(
    (await file.load()).registrations.map(({ service }) => service),
    ['b'],
  )
})

test('a crash in the middle of a save leaves what was there before', async (t) => {
  const path = join(await directory(t), 's.json')
  const file = new RegistrationFile(path, quietLog)
  await file.save(saved([spec('a')]))
  await writeFile(`${path}.tmp`, '{"version":1,"regis')
  assert.equal((await new RegistrationFile(path, quietLog).load()).registrations[0]!.service, 'a')
})

for (const [what, content] of Object.entries({
  'half a document': '{"version":1,"regis',
  'another version': '{"version":2,"registrations":[]}',
  'a registration that is none': '{"version":1,"registrations":[{"service":"../x","port":1}]}',
}))
  test(`${what} is set aside, and the sidecar starts without it`, async (t) => {
    const path = join(await directory(t), 's.json')
    await writeFile(path, content)
    assert.deepEqual(await new RegistrationFile(path, quietLog).load(), saved([]))
    assert.equal(await readFile(`${path}.corrupt`, 'utf8'), content)
  })

test('a disk that cannot be written stops nothing, and is said once', async (t) => {
  const base = await directory(t)
  await writeFile(join(base, 'occupied'), '')
  const warnings: string[] = []
  const log = { ...quietLog, warn: (_fields: object, message: string) => void warnings.push(message) }
  const file = new RegistrationFile(join(base, 'occupied', 's.json'), log)
  await file.save(saved([spec('a')]))
  await file.save(saved([spec('b')]))
  assert.deepEqual(warnings, ['registrations are not saved'])
})

test('without a file nothing is known', async (t) => {
  assert.deepEqual(await new RegistrationFile(join(await directory(t), 'none.json'), quietLog).load(), saved([]))
})
