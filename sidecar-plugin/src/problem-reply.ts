import { REASONS, type SidecarError } from './errors.ts'
import { Fields } from './fields.ts'
import { Whole, type Reply } from './layer.ts'

/** What a problem document says (RFC 9457), but for its type, which follows from the code. */
export interface ProblemDetails {
  readonly status: number
  /** Stable, for programs. */
  readonly code: string
  readonly title: string
  readonly detail?: string
  /** Each part of the request that is wrong. */
  readonly errors?: readonly { readonly path: string; readonly message: string }[]
}

/** The one form of all refusals. @param fields besides those of the content, flat */
export function problemReply(problem: ProblemDetails, fields: readonly string[] = []): Reply {
  const body = Whole.of(JSON.stringify({ type: `urn:holdfast:problem:${problem.code}`, ...problem }))
  const content = ['content-type', 'application/problem+json', 'content-length', String(body.length)]
  return { status: problem.status, headers: Fields.of([...fields, ...content]), body }
}

/** The answer to a request that the sidecar ended: the reason stands in a field, too. */
export function errorReply({ status, reason, message }: SidecarError): Reply {
  const reply = problemReply({ status, code: reason, title: REASONS[reason].title, detail: message })
  return { ...reply, reason, own: true }
}
