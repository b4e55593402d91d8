import { asSidecarError } from '../errors.ts'
import { errorReply } from '../problem-reply.ts'
import { grpcReply } from '../http2/grpc.ts'
import type { Layer } from '../layer.ts'
import type { Log } from '@holdfast/registry-client/log'

/**
 * Turns every failure into its answer: the one place where an error becomes a status. Stands below log and metrics,
 * which see answers only, and above everything that may throw.
 */
export function answers(log: Log): Layer {
  return (inner) => async (exchange) => {
    try {
      return await inner(exchange)
    } catch (thrown) {
      const error = asSidecarError(thrown)
      if (error.reason === 'internal_error')
        log.error({ err: error.cause, requestId: exchange.id, service: exchange.service }, 'a layer failed')
      return exchange.isGrpc ? grpcReply(error) : errorReply(error)
    }
  }
}
