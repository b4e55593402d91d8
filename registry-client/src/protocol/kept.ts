import { cursorOf, type Cursor } from './cursor.ts'
import type { ServiceNode } from './node.ts'
import { list, ProtocolError, record } from './reading.ts'

export interface Kept {
  readonly cursor: Cursor
  readonly ids: readonly string[]
  /** Whether the policy is from there too. */
  readonly policy: boolean
}

export function decodeKept(input: unknown, nodes: ReadonlyMap<string, ServiceNode>, path: string): Kept {
  const doc = record(input, path)
  const ids = list(doc.ids, `${path}.ids`).map((id, index) => {
    if (typeof id !== 'string' || !nodes.has(id))
      throw new ProtocolError(`${path}.ids.${index}`, 'not one of the nodes')
    return id
  })
  const cursor = Object.freeze(cursorOf(doc.cursor, `${path}.cursor`))
  return Object.freeze({ cursor, ids: Object.freeze(ids), policy: doc.policy === true })
}
