import type { SendHandle } from 'node:child_process'
import { systemClock, systemRandom } from '@holdfast/registry-client/clock'
import { pino } from 'pino'
import { connectClient } from '../connect-client.ts'
import { createDataPlane, type DataClient, type ProcessDataPlane } from '../data-plane.ts'
import { endOnUncaught } from '../uncaught.ts'
import { HandedAcceptors } from './handed-acceptors.ts'
import { isToWorker, type Beginning, type FromWorker, type Question, type WorkerApi } from './messages.ts'
import { socketOf } from './raw-connection.ts'
import type { RawConnection } from './worker-process.ts'

interface Begun {
  readonly beginning: Beginning
  readonly plane: ProcessDataPlane
  readonly client: DataClient & { close(): Promise<void> }
}

/** A worker: a data plane in a process of its own, which does what the sidecar asks of it. */
export function work(): void {
  endOnUncaught()
  const tell = (message: FromWorker) => {
    if (process.connected) process.send!(message, undefined, {}, () => {})
  }
  const acceptors = new HandedAcceptors((opening) => tell({ kind: 'leave', opening }))
  let begun: Promise<Begun> | undefined

  const answer = async (id: number, question: Question, args: readonly unknown[]) => {
    try {
      if (question === 'begin') await (begun = begin(args[0] as Beginning, acceptors))
      // In the order in which they were asked: nothing is changed before what it changes is there.
      const api = apiOf(await begun!)
      const value = question === 'begin' ? undefined : await (api[question] as (...args: unknown[]) => unknown)(...args)
      tell({ kind: 'answer', id, value })
    } catch (error) {
      const { message, code } = error as NodeJS.ErrnoException
      tell({ kind: 'failure', id, message, code })
    }
  }
  process.on('message', (message: unknown, raw: SendHandle | undefined) => {
    if (!isToWorker(message)) return
    if (message.kind === 'ask') void answer(message.id, message.question, message.args)
    else if (message.kind === 'left') acceptors.left(message.opening)
    else {
      // That it has not come shows in that it is not taken.
      if (raw === undefined) return
      // Before anything of it is read: until then another worker can have it.
      tell({ kind: 'took' })
      acceptors.arrived(message.opening, socketOf(raw as unknown as RawConnection))
    }
  })
  process.once('disconnect', () => {
    acceptors.leftAlone()
    void (begun ? begun.then(finishAlone) : Promise.resolve()).catch(() => {}).then(() => process.exit(1))
  })
}

async function begin(beginning: Beginning, acceptors: HandedAcceptors): Promise<Begun> {
  const { config, worker, nodes, openings, isRetired } = beginning
  const log = pino(
    { name: 'holdfast-sidecar', level: config.logLevel },
    pino.destination({ dest: 2, sync: true }),
  ).child({
    worker,
  })
  // A promise that nobody waits for broke: a bug, but one whose request is over. The others go on.
  process.on('unhandledRejection', (error) => log.error({ err: error }, 'a promise was left alone'))
  const parts = { config, log, clock: systemClock, random: systemRandom }
  const client = await connectClient(parts)
  const plane = createDataPlane({ ...parts, client, acceptor: (id) => acceptors.of(id) })
  for (const node of nodes) await plane.set(node)
  for (const opening of openings) await plane.open(opening)
  if (isRetired) plane.retire()
  return { beginning, plane, client }
}

/** The sidecar has died, and the next one may listen already. What is under way here is nobody else's. */
async function finishAlone({ beginning, plane, client }: Begun): Promise<void> {
  const { idle, timeout } = beginning.config.drain
  plane.retire()
  await plane.finish({ idleMs: idle, timeoutMs: timeout })
  await end(plane, client)
}

async function end(plane: ProcessDataPlane, client: Begun['client']): Promise<void> {
  plane.cut()
  await client.close()
  await plane.close()
}

function apiOf({ plane, client }: Begun): Omit<WorkerApi, 'begin'> {
  return {
    open: (opening) => plane.open(opening),
    shut: (id, patience) => plane.shut(id, patience),
    set: (node) => plane.set(node),
    forget: (service) => plane.forget(service),
    idle: (service, limitMs) => plane.idle(service, limitMs),
    retire: () => Promise.resolve(plane.retire()),
    finish: (patience) => plane.finish(patience),
    close: () => end(plane, client),
    reopenLogs: () => Promise.resolve(plane.reopenLogs()),
    inFlight: () => plane.inFlight(),
    views: () => plane.views(),
    view: (name) => plane.view(name),
    peerView: (name) => plane.peerView(name),
    explain: (name, request) => plane.explain(name, request),
    rehearse: (names) => plane.rehearse(names, new AbortController().signal),
    counts: async () => ({ metrics: await plane.registry.getMetricsAsJSON(), traffic: await plane.traffic() }),
    async report(whole) {
      const { connections, tcp } = await plane.traffic()
      return {
        connections: tcp.reduce((sum, { open }) => sum + open, connections.inbound.open + connections.outbound.open),
        ...(whole && { client: client.status() }),
      }
    },
  }
}
