/**
 * What a process tells other clients of what it knows, as a sidecar does: see `sidecar-plugin/src/api/peers.ts`. The
 * bounds of that, which are its own tests' business, are not here.
 */

import { DEFAULT_NAMESPACE } from '@holdfast/registry-client/protocol'
import type { KnownView, RegistryClient } from '../../registry-client/src/client.ts'
import { shownKnown } from '../../sidecar-plugin/src/inspection.ts'
import type { SimProcess } from './process.ts'
import type { Network } from './sim-network.ts'
import type { AnswerMessage, RequestMessage } from './sim-wire.ts'

const UNKNOWN: AnswerMessage = { status: 404, headers: {}, body: '{"code":"service_not_found"}' }
const STARTING: AnswerMessage = { status: 503, headers: {}, body: '{}' }

export interface PeerPortOptions {
  readonly process: SimProcess
  readonly network: Network
  readonly address: string
  /** Undefined while it starts. */
  readonly client: () => RegistryClient | undefined
  /** Instead of the truth; undefined: the truth. */
  readonly lie: (namespace: string, service: string) => { readonly answer: AnswerMessage | undefined } | undefined
  /** Called with each honest answer. */
  readonly told: (service: string, known: KnownView) => void
}

/** Listens until the process ends. */
export function openPeerPort(options: PeerPortOptions): void {
  const { process, network, address } = options
  network.listen(process, address, (end) => ({
    message: (content) =>
      void answer(options, content as RequestMessage).then((message) => {
        if (message && process.isAlive) end.send(message)
      }),
    closed() {},
  }))
}

async function answer(options: PeerPortOptions, request: RequestMessage): Promise<AnswerMessage | undefined> {
  const { pathname, searchParams } = new URL(request.path, 'http://peer')
  const service = pathname.slice('/v1/views/'.length)
  const namespace = searchParams.get('namespace') ?? DEFAULT_NAMESPACE
  const lie = options.lie(namespace, service)
  if (lie) return lie.answer
  const client = options.client()
  if (client === undefined) return STARTING
  const known = await client.lookup(service, { namespace })
  if (known === undefined) return UNKNOWN
  options.told(service, known)
  return { status: 200, headers: {}, body: JSON.stringify(shownKnown(known, undefined, client.reachable)) }
}
