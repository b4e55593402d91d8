import type { Socket } from 'node:net'

/**
 * The system lets those who connect have ports of the same range that services get theirs from. When it takes for a
 * connection the very port that the connection goes to, and nobody listens there, both ends meet (RFC 9293, section
 * 3.5): what is said comes back, and the service cannot have its port again. Where nobody listens it happens about once
 * in fourteen thousand times, which for a check every two seconds is once in a night.
 * @returns the error that it should have been; undefined for every other connection
 */
export function selfConnection(socket: Socket): NodeJS.ErrnoException | undefined {
  if (socket.localPort !== socket.remotePort || socket.localAddress !== socket.remoteAddress) return undefined
  const message = `connect ECONNREFUSED ${socket.remoteAddress}:${socket.remotePort}: the connection met itself`
  return Object.assign(new Error(message), { code: 'ECONNREFUSED', syscall: 'connect' })
}
