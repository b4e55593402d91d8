/** What is not HTTP has no route, and is answered in the form of all other refusals. */

import type { Socket } from 'node:net'

/**
 * For `clientError` of a server, which leaves the socket to whoever listens. The connection ends with the answer.
 * @returns false for a connection that is gone, which nothing can be told
 */
export function refuseBytes(error: NodeJS.ErrnoException, socket: Socket): boolean {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy()
    return false
  }
  if (error.code === 'HPE_HEADER_OVERFLOW')
    refuseSocket(socket, 431, 'header_too_large', 'Request Header Fields Too Large')
  else if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT') refuseSocket(socket, 408, 'request_timeout', 'Request Timeout')
  else refuseSocket(socket, 400, 'invalid_request', 'Bad Request')
  return true
}

/** A refusal to a socket that no request belongs to, and its end: whoever does not close it is not waited for. */
export function refuseSocket(socket: Socket, status: number, code: string, phrase: string): void {
  // Node has let go of it: without a listener, a connection that is reset meanwhile would end the process.
  socket.on('error', () => socket.destroy())
  const body = JSON.stringify({ type: `urn:holdfast:problem:${code}`, status, code, title: phrase })
  socket.end(
    `HTTP/1.1 ${status} ${phrase}\r\ncontent-type: application/problem+json\r\n` +
      `content-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
    () => socket.destroy(),
  )
}
