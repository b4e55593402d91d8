/** A registry inside this process that answers each subscription with a snapshot, and sends what it is told to. */

import { connect, type ConnectOptions, type Network, type RegistryClient } from '@holdfast/registry-client'
import type { ClientMessage } from '@holdfast/registry-client/protocol'

export interface MemoryRegistry extends Network {
  /** Sends a message to the client that connected last, as its text arrives. */
  send(text: string): void
}

export function nodeOf(index: number, weight = 100): object {
  return {
    id: `10.${index >> 16}.${(index >> 8) & 255}.${index & 255}:8080`,
    host: `10.${index >> 16}.${(index >> 8) & 255}.${index & 255}`,
    port: 8080,
    protocol: 'http',
    weight,
    labels: { version: 'v1' },
    status: 'up',
    incarnation: 1,
    leased: true,
  }
}

export function registryOf(
  nodesOf: (service: string) => number,
  weightOf: (index: number) => number = () => 100,
): MemoryRegistry {
  let deliver: (text: string) => void = () => {}
  return {
    send: (text) => deliver(text),
    request: () => Promise.reject(new Error('no requests here')),
    probe: () => Promise.reject(new Error('no probes here')),
    open: (_url, handlers) => {
      deliver = (text) => handlers.message(text)
      queueMicrotask(() => handlers.open())
      return {
        close: () => handlers.close('closed'),
        send: (text) => {
          const message = JSON.parse(text) as ClientMessage
          if (message.type !== 'subscribe') return
          for (const { namespace = 'default', service } of message.services) {
            const nodes = Array.from({ length: nodesOf(service) }, (_, index) => nodeOf(index, weightOf(index)))
            const data = { namespace, service, cursor: 'bench:1', nodes, policy: null }
            handlers.message(JSON.stringify({ event: 'snapshot', id: 'bench:1', data }))
          }
        },
      }
    },
  }
}

export async function clientOf(
  services: readonly string[],
  network: Network,
  options: Partial<ConnectOptions> = {},
): Promise<RegistryClient> {
  const client = await connect({ endpoints: ['http://127.0.0.1:1'], network, maxNodes: 10_000_000, ...options })
  for (const service of services) await client.resolve(service)
  return client
}
