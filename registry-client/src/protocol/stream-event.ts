import { cursorOf, type Cursor } from './cursor.ts'
import { decodeChange, type ChangeFrame, type SnapshotFrame } from './frame.ts'
import { decodePing, type Ping } from './ping.ts'
import { oneOf } from './reading.ts'
import { decodeView } from './view.ts'

export const EVENTS = ['snapshot', 'change', 'ping'] as const

/**
 * One event of a watch stream, the same on both transports: on Server-Sent Events the fields `event`, `id` and
 * `data`; on the WebSocket one text message `{"event":…,"id":…,"data":…}`.
 *
 * `id`, where present, promises that everything up to it has been sent on this stream.
 */
export type StreamEvent =
  | { readonly event: 'snapshot'; readonly id?: Cursor; readonly frame: SnapshotFrame }
  | { readonly event: 'change'; readonly id?: Cursor; readonly frame: ChangeFrame }
  | ({ readonly event: 'ping'; readonly id?: Cursor } & Ping)

/**
 * Reads one event of a watch stream.
 * @param data parsed JSON
 * @throws ProtocolError with the path of the offending field
 */
export function decodeEvent(event: unknown, id: unknown, data: unknown): StreamEvent {
  const at = id === undefined ? undefined : cursorOf(id, 'id')
  const position = at && { id: at }
  switch (oneOf(event, EVENTS, 'event')) {
    case 'ping':
      return { event: 'ping', ...position, ...decodePing(data) }
    case 'snapshot':
      return { event: 'snapshot', ...position, frame: { kind: 'snapshot', view: decodeView(data, 'data') } }
    case 'change':
      return { event: 'change', ...position, frame: decodeChange(data, 'data') }
  }
}
