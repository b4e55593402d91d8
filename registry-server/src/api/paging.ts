/** Lists in pages: `?limit=` and `?page=`, the answer naming `next`. */

import { invalid } from './problems.ts'
import { DEFAULT_PAGE } from './schemas.ts'

export interface PageQuery {
  readonly limit?: number
  readonly page?: string
}

export interface Page<T> {
  /** The place of the last item of the page before. */
  readonly after: string | undefined
  take(items: Iterable<T>): { items: T[]; next: string | undefined }
}

/**
 * @param placeOf where an item stands in the list's order
 * @throws Refusal for a token that is none of ours
 */
export function pageOf<T>({ limit = DEFAULT_PAGE, page }: PageQuery, placeOf: (item: T) => string): Page<T> {
  return {
    after: page === undefined ? undefined : placeIn(page),
    take(source) {
      const items: T[] = []
      let isMore = false
      for (const item of source) {
        isMore = items.length === limit
        if (isMore) break
        items.push(item)
      }
      return { items, next: isMore ? pageToken(placeOf(items.at(-1)!)) : undefined }
    },
  }
}

/** Opaque, so that nobody builds one. */
function pageToken(place: string): string {
  return Buffer.from(place).toString('base64url')
}

function placeIn(token: string): string {
  const place = Buffer.from(token, 'base64url').toString()
  if (place === '' || pageToken(place) !== token) throw invalid('page', 'is not one of `next`')
  return place
}
