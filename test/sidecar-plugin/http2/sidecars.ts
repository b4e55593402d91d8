/** Two sidecars in a row with a service behind the second, on real sockets. */

import type { TestContext } from 'node:test'
import type { Protocol } from '@holdfast/registry-client/protocol'
import { loadConfig } from '../../../sidecar-plugin/src/config.ts'
import { createSidecar, type Sidecar, type SidecarOptions } from '../../../sidecar-plugin/src/sidecar.ts'
import { seededRandom } from '../../support/seeded-random.ts'
import { FakeClient, quietLog } from '../fakes.ts'

type Limits = NonNullable<SidecarOptions['limits']>

export async function startSidecar(
  t: TestContext,
  options: { client?: FakeClient; limits?: Limits; services?: readonly object[] } = {},
): Promise<{ sidecar: Sidecar; client: FakeClient }> {
  const client = options.client ?? new FakeClient()
  const { config } = loadConfig({
    argv: [
      ...['--admin-port', '0', '--outbound-port', '0', '--inbound-port', '0', '--no-file-cache'],
      ...['--drain-settle', '0ms', '--drain-timeout', '10s', '--config', 'sidecar.yaml'],
    ],
    env: {},
    readFile: () => JSON.stringify({ drain: { idle: '200ms' }, services: options.services ?? [] }),
  })
  const sidecar = await createSidecar({
    config,
    log: quietLog,
    random: seededRandom(1),
    client,
    ...(options.limits && { limits: options.limits }),
  })
  t.after(() => sidecar.close())
  return { sidecar, client }
}

/** A service named `stock`, behind a sidecar of its own; callers use the other one's outbound side. */
export async function startPair(
  t: TestContext,
  service: { port: number; protocol: Protocol },
  limits?: Limits,
): Promise<{ ours: Sidecar; theirs: Sidecar; client: FakeClient }> {
  const services = [{ service: 'stock', ...service, healthCheck: { type: 'none' } }]
  const { sidecar: theirs } = await startSidecar(t, { services, ...(limits && { limits }) })
  const { sidecar: ours, client } = await startSidecar(t, limits ? { limits } : {})
  client.set('stock', [{ id: 'n', port: theirs.ports.inbound, protocol: service.protocol }])
  return { ours, theirs, client }
}

/** A number on a sidecar's page of metrics. */
export async function metric(sidecar: Sidecar, line: string): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${sidecar.ports.admin}/metrics`)).text()
  const found = text.split('\n').find((each) => each.startsWith(line))
  return found === undefined ? 0 : Number(found.slice(found.lastIndexOf(' ') + 1))
}
