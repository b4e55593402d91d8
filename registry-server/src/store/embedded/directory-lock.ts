/**
 * One process per data directory. A second one would decide on a memory of its own, and the two would overwrite each
 * other's writes.
 *
 * The holder listens on a Unix socket in the directory: the kernel closes it when the process ends, however it ends, so
 * that a stale lock cannot exist; and it holds across containers that share the directory, where process ids mean
 * nothing. Everyone first listens, then looks whether anyone else answers, so of two at least one sees the other.
 */

import { createHash } from 'node:crypto'
import { closeSync, openSync, readdirSync, rmSync } from 'node:fs'
import { connect, createServer, type Server } from 'node:net'
import { join, resolve } from 'node:path'
import { StoreRefused } from '../store.ts'

const NAME = /^lock-[\w-]+\.sock$/

export interface DirectoryLock {
  release(): Promise<void>
}

/**
 * @param identifier unique to this attempt
 * @throws StoreRefused when another process holds the directory
 */
export async function lockDirectory(directory: string, identifier: string): Promise<DirectoryLock> {
  if (process.platform === 'win32') return lockPipe(directory)
  const name = `lock-${identifier}.sock`
  // A socket's address holds some hundred bytes, which a deep directory alone may fill: go by its descriptor.
  const descriptor = process.platform === 'linux' ? openSync(directory, 'r') : undefined
  const at = (file: string) =>
    descriptor === undefined ? join(directory, file) : `/proc/self/fd/${descriptor}/${file}`
  const server = await listen(at(name)).catch((error: unknown) => {
    if (descriptor !== undefined) closeSync(descriptor)
    const reason = String(error).replaceAll(at(name), join(directory, name))
    throw new StoreRefused(`cannot lock ${directory}: ${reason}`, error)
  })
  const release = async () => {
    await closed(server)
    if (descriptor !== undefined) closeSync(descriptor)
  }
  for (const file of readdirSync(directory)) {
    if (file === name || !NAME.test(file)) continue
    if (await answers(at(file))) {
      await release()
      throw inUse(directory)
    }
    rmSync(join(directory, file), { force: true })
  }
  return { release }
}

async function lockPipe(directory: string): Promise<DirectoryLock> {
  const name = createHash('sha256').update(resolve(directory).toLowerCase()).digest('hex').slice(0, 32)
  const server = await listen(`\\\\.\\pipe\\holdfast-${name}`).catch(() => {
    throw inUse(directory)
  })
  return { release: () => closed(server) }
}

function inUse(directory: string): StoreRefused {
  return new StoreRefused(
    `${directory} is in use by another holdfast-registry: stop that one, or give this one its own --data-dir`,
  )
}

function listen(path: string): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy())
    server.once('error', reject)
    server.listen(path, () => {
      server.unref()
      resolve(server)
    })
  })
}

function closed(server: Server): Promise<void> {
  return new Promise((resolve) => server.close(() => resolve()))
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', (error: NodeJS.ErrnoException) => {
      // Only a refusal proves that nobody listens; a full backlog (EAGAIN) is a live one.
      resolve(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT')
    })
  })
}
