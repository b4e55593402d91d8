// What the programs that look into a store share. Plain JavaScript, since they run without a loader.
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { open } from 'lmdb'

/**
 * Opens the store that the first argument names, and ends the process with 3 and a reason on standard error when that,
 * or what is done with it, fails. A store that is damaged badly enough ends it by a signal: then lmdb itself fails.
 */
export async function withStore(options, use) {
  const [location] = process.argv.slice(2)
  try {
    if (statSync(join(location, 'data.mdb')).size === 0) throw new Error('data.mdb is empty')
    const root = open({
      path: location,
      noSubdir: false,
      encoding: 'binary',
      keyEncoding: 'binary',
      overlappingSync: false,
      eventTurnBatching: false,
      ...options,
    })
    await use(root)
    await root.close()
  } catch (error) {
    process.stderr.write(`${error.message}\n`)
    process.exit(3)
  }
}

/** A record, for messages. */
export function nameOf(key) {
  return `record ${JSON.stringify(key.toString('latin1').slice(0, 200))}`
}
