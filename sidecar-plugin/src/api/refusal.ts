import type { Log } from '@holdfast/registry-client/log'
import { asSidecarError } from '../errors.ts'
import type { Exchange, Layer, Reply } from '../layer.ts'
import { errorReply, problemReply, type ProblemDetails } from '../problem-reply.ts'

/** A request that an API does not serve, and what it says of it. */
export class Refusal extends Error {
  readonly problem: ProblemDetails
  /** Of the answer, flat. */
  readonly fields: readonly string[]

  constructor(problem: ProblemDetails, fields: readonly string[] = []) {
    super(problem.title)
    this.name = 'Refusal'
    this.problem = problem
    this.fields = fields
  }
}

export function invalid(errors: NonNullable<ProblemDetails['errors']>): Refusal {
  return new Refusal({ status: 400, code: 'invalid_request', title: 'The request is not valid', errors })
}

/**
 * Turns every failure into its answer. Stands above everything that may throw.
 * @param refused makes something of each of those answers that somebody waits for
 */
export function refusals(log: Log, refused: (reply: Reply) => Reply = (reply) => reply): Layer {
  return (inner) => async (exchange) => {
    try {
      return await inner(exchange)
    } catch (error) {
      // Whatever broke because of that is nobody's fault.
      if (exchange.aborted) return errorReply(exchange.aborted)
      return refused(replyTo(error, exchange, log))
    }
  }
}

function replyTo(thrown: unknown, { id, method, target }: Exchange, log: Log): Reply {
  if (thrown instanceof Refusal) return problemReply(thrown.problem, thrown.fields)
  const error = asSidecarError(thrown)
  if (error.reason === 'internal_error')
    log.error({ err: error.cause, requestId: id, method, target }, 'a request to an API failed')
  return errorReply(error)
}
