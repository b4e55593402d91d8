/** A disk that is asked for few things at once. */

import type { Disk } from '../disk.ts'
import { Semaphore } from '../semaphore.ts'

/**
 * Every file operation of Node holds one of a few threads (four by default) until it is done, and so does looking up a
 * host name: a disk that hangs would take the network with it, unless some threads are kept from it.
 */
export function limitedDisk(disk: Disk, most: number): Disk {
  const places = new Semaphore(most)
  const limited = async <Result>(operation: () => Promise<Result>): Promise<Result> => {
    await places.enter()
    try {
      return await operation()
    } finally {
      places.leave()
    }
  }
  return {
    read: (...args) => limited(() => disk.read(...args)),
    startsWith: (...args) => limited(() => disk.startsWith(...args)),
    stat: (...args) => limited(() => disk.stat(...args)),
    list: (...args) => limited(() => disk.list(...args)),
    makeDirectory: (...args) => limited(() => disk.makeDirectory(...args)),
    create: (...args) => limited(() => disk.create(...args)),
    sync: (...args) => limited(() => disk.sync(...args)),
    link: (...args) => limited(() => disk.link(...args)),
    rename: (...args) => limited(() => disk.rename(...args)),
    remove: (...args) => limited(() => disk.remove(...args)),
    touch: (...args) => limited(() => disk.touch(...args)),
    // Lives long, and waits for itself.
    watch: (...args) => disk.watch(...args),
  }
}
