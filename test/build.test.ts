/** What `npm run build` writes: packages that need neither this tree nor a compiler. */

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { request, type IncomingMessage } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { build } from '../build.ts'
import { Mesh } from './mesh/mesh.ts'

const ROOT = fileURLToPath(new URL('../', import.meta.url))
const PACKAGES = ['registry-client', 'registry-server', 'sidecar-plugin'] as const

interface Manifest {
  readonly name: string
  readonly version: string
  readonly bin: Record<string, string>
  readonly exports: Record<string, string>
  readonly dependencies: Record<string, string>
}

const manifestOf = (directory: string): Manifest =>
  JSON.parse(readFileSync(path.join(directory, 'package.json'), 'utf8')) as Manifest

describe('a build', () => {
  let directory: string
  let built: string
  before(async () => {
    directory = mkdtempSync(path.join(tmpdir(), 'holdfast-test-'))
    // Below the tree's own packages, where an installation finds those that it needs.
    built = path.join(ROOT, 'node_modules', `.${path.basename(directory)}`)
    await build(built)
  })
  after(() => {
    rmSync(directory, { recursive: true, force: true })
    rmSync(built, { recursive: true, force: true })
  })

  test('has what its manifests name, and nothing that only the tree needs', () => {
    for (const name of PACKAGES) {
      const manifest = manifestOf(path.join(built, name))
      for (const file of [...Object.values(manifest.bin), ...Object.values(manifest.exports)])
        assert.ok(existsSync(path.join(built, name, file)), `${name} has no ${file}`)
      for (const file of Object.values(manifest.exports))
        assert.ok(existsSync(path.join(built, name, file.replace(/js$/, 'd.ts'))), `${name} has no types of ${file}`)
      assert.ok(!('tsx' in manifest.dependencies), name)
      for (const file of readdirSync(path.join(built, name), { recursive: true, encoding: 'utf8' })) {
        assert.doesNotMatch(file, /(?<!\.d)\.ts$/)
        if (file.endsWith('.js') || file.endsWith('.d.ts'))
          assert.ok(
            !readFileSync(path.join(built, name, file), 'utf8').includes(ROOT),
            `${name}/${file} names this tree`,
          )
      }
    }
    assert.deepEqual(manifestOf(path.join(built, 'sidecar-plugin')).dependencies, {})
  })

  test('is replaced as a whole, and leaves nothing beside it', async () => {
    const stale = path.join(built, 'sidecar-plugin/src/stale.js')
    writeFileSync(stale, '')
    await build(built)
    assert.ok(!existsSync(stale))
    const beside = readdirSync(path.dirname(built)).filter((file) => file.startsWith(path.basename(built)))
    assert.deepEqual(beside, [path.basename(built)])
  })

  test('has types that a user’s compiler takes', () => {
    const names = PACKAGES.flatMap((name) => {
      const { exports, name: scoped } = manifestOf(path.join(built, name))
      return Object.keys(exports).map((key) => path.posix.join(scoped, key))
    })
    const file = path.join(built, 'user.ts')
    const lines = names.map((name, index) => `import * as module${index} from '${name}'\nvoid module${index}`)
    // A name that is there, and one that is not: had the types not been found, both would be.
    lines.push("import { connect, type RegistryClient } from '@holdfast/registry-client'")
    lines.push('export const client: Promise<RegistryClient> = connect({ endpoints: [] })')
    lines.push("import { stack, type Layer } from '@holdfast/sidecar-plugin'")
    lines.push('export const layers: Layer[] = [(next) => (exchange) => next(exchange)]', 'void stack(layers, 7)')
    writeFileSync(file, lines.join('\n'))
    const program = ts.createProgram([file], {
      strict: true,
      noEmit: true,
      target: ts.ScriptTarget.ES2023,
      module: ts.ModuleKind.NodeNext,
      moduleResolution: ts.ModuleResolutionKind.NodeNext,
      types: [],
      skipLibCheck: true,
    })
    const faults = ts
      .getPreEmitDiagnostics(program)
      .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' '))
    assert.equal(faults.length, 1, faults.join('\n'))
    assert.match(faults[0]!, /^Argument of type 'number' is not assignable/)
  })

  test('runs: a registry, and sidecars that lie where nothing is installed', { timeout: 120_000 }, async (t) => {
    const packages = path.join(directory, 'packages')
    mkdirSync(packages)
    for (const name of ['registry-client', 'registry-server'])
      symlinkSync(path.join(built, name), path.join(packages, name))
    cpSync(path.join(built, 'sidecar-plugin'), path.join(packages, 'sidecar-plugin'), { recursive: true })
    for (const name of PACKAGES)
      for (const file of Object.values(manifestOf(path.join(packages, name)).bin)) {
        const printed = execFileSync(process.execPath, [path.join(packages, name, file), '--version'], {
          cwd: packages,
        })
        assert.equal(printed.toString().trim(), manifestOf(path.join(ROOT, name)).version)
      }
    const mesh = new Mesh({ directory: path.join(directory, 'mesh'), packages, sidecarArgs: ['--workers', '2'] })
    t.after(() => mesh.stop('SIGKILL'))
    await mesh.startRegistry()
    const [shop, stock] = await Promise.all([mesh.addHost('shop'), mesh.addHost('stock')])
    await Promise.all([shop.register(), stock.register()])
    const asked = request({ port: shop.ports.outbound, path: '/items/1', headers: { host: 'stock' } }).end()
    const [answer] = (await once(asked, 'response')) as [IncomingMessage]
    answer.resume()
    assert.equal(answer.statusCode, 200)
    const workers = ((await shop.admin('GET', '/v1/stats')) as { workers: { state: string }[] }).workers
    assert.deepEqual(
      workers.map(({ state }) => state),
      ['listening', 'listening'],
    )
  })
})
