/** Places of the history that calls wait for, of one service or of any: what the registry is asked to have reached. */

import { isAfter, type Cursor } from '../protocol.ts'

/** Of one service. A place is asked for anew each time, since it may be named only once a history is known. */
export type Place = () => Cursor | undefined

export class AwaitedPlaces<Service> {
  readonly #places = new Map<Service, Set<Place>>()

  /** Services of which someone waits for a place. */
  get services(): Iterable<Service> {
    return this.#places.keys()
  }

  add(service: Service, place: Place): void {
    const places = this.#places.get(service) ?? new Set()
    this.#places.set(service, places.add(place))
  }

  delete(service: Service, place: Place): void {
    const places = this.#places.get(service)
    places?.delete(place)
    if (places?.size === 0) this.#places.delete(service)
  }

  /** The latest place that anyone waits for. */
  latest(service: Service): Cursor | undefined {
    let last: Cursor | undefined
    for (const place of this.#places.get(service) ?? []) {
      const cursor = place()
      // Of places in two histories either; the registry knows one of them.
      if (cursor && (last === undefined || isAfter(cursor, last))) last = cursor
    }
    return last
  }
}
