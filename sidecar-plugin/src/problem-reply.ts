import { REASONS, type SidecarError } from './errors.ts'
import { Fields } from './fields.ts'
import { Whole, type Reply } from './layer.ts'

/** The answer to a failed request: problem+json with the reason in a header. */
export function problemReply(error: SidecarError): Reply {
  const body = Whole.of(
    JSON.stringify({
      type: `urn:holdfast:problem:${error.reason}`,
      title: REASONS[error.reason].title,
      status: error.status,
      code: error.reason,
      detail: error.message,
    }),
  )
  return {
    status: error.status,
    headers: Fields.of(['content-type', 'application/problem+json', 'content-length', String(body.length)]),
    body,
    reason: error.reason,
    own: true,
  }
}
