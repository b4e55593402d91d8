import { Fields } from '../fields.ts'
import { Whole, type Exchange } from '../layer.ts'
import { invalid, Refusal } from './refusal.ts'

const BODY_BYTES = 65_536

/** A request to an API, read as APIs read it. */
export class ApiRequest {
  readonly exchange: Exchange
  /** What follows the question mark. */
  readonly search: URLSearchParams

  constructor(exchange: Exchange, search: string) {
    this.exchange = exchange
    this.search = new URLSearchParams(search)
  }

  /**
   * The parameters, none of which may be another or be given twice.
   * @param pattern of further ones that are known
   * @throws Refusal
   */
  query<const K extends string>(known: readonly K[], pattern?: RegExp): Partial<Record<K, string>> {
    const errors = [...new Set(this.search.keys())].flatMap((key) => {
      if (!(known as readonly string[]).includes(key) && !pattern?.test(key))
        return [{ path: `query.${key}`, message: 'unknown parameter' }]
      return this.search.getAll(key).length === 1 ? [] : [{ path: `query.${key}`, message: 'must be given once' }]
    })
    if (errors.length > 0) throw invalid(errors)
    return Object.fromEntries(this.search) as Partial<Record<K, string>>
  }

  /**
   * What the body says in JSON, whatever type it is said to be: curl calls it a form unless told otherwise. Undefined
   * without one.
   * @throws Refusal, SidecarError
   */
  async json(): Promise<unknown> {
    const text = await textOf(this.exchange)
    if (text === '') return undefined
    try {
      return JSON.parse(text)
    } catch (error) {
      throw invalid([{ path: '(body)', message: `must be JSON: ${(error as Error).message}` }])
    }
  }
}

function textOf({ body, headers, caller }: Exchange): Promise<string> {
  if (body === undefined) return Promise.resolve('')
  if (body instanceof Whole) return Promise.resolve(Buffer.from(body.latin1, 'latin1').toString())
  return new Promise((resolve, reject) => {
    if (body.length !== undefined && body.length > BODY_BYTES) throw tooLarge()
    if (headers.has('expect')) caller?.inform({ status: 100, headers: Fields.NONE })
    const pieces: Buffer[] = []
    let bytes = 0
    body.pour({
      write(piece) {
        bytes += piece.length
        if (bytes > BODY_BYTES) {
          body.cancel()
          reject(tooLarge())
        } else pieces.push(Buffer.from(piece))
        return true
      },
      end: () => resolve(Buffer.concat(pieces).toString()),
      fail: reject,
    })
  })
}

function tooLarge(): Refusal {
  return new Refusal({ status: 413, code: 'body_too_large', title: `A body may have ${BODY_BYTES} bytes at most` })
}
