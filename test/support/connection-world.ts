import type { Cursor, StreamEvent } from '@holdfast/registry-client/protocol'
import { Connection, type Session } from '../../registry-client/src/registry/connection.ts'
import { ManualClock } from './manual-clock.ts'
import { MemoryLog } from './memory-log.ts'
import { ScriptedNetwork } from './scripted-network.ts'

export function world(options: { endpoints?: string[]; random?: () => number } = {}) {
  const clock = new ManualClock()
  const network = new ScriptedNetwork()
  const log = new MemoryLog()
  const cursors = new Map<string, Cursor>()
  const events: { event: StreamEvent; session: Session }[] = []
  const reachable: boolean[] = []
  const connection = new Connection(
    { endpoints: options.endpoints ?? ['http://one:1'], network, clock, log, random: options.random ?? (() => 0) },
    {
      event: (event, session) => events.push({ event, session }),
      reachable: (is) => reachable.push(is),
      held: (key) => ({ cursor: cursors.get(key) }),
    },
  )
  return { clock, network, log, cursors, events, reachable, connection }
}
