/**
 * A data directory on disk: who may use it, whether what is in it can be trusted, and how it comes into being.
 *
 *     {directory}/store/       the database; there from the moment it holds its first record
 *     {directory}/store.new/   a creation that did not finish
 *     {directory}/lock-*.sock  held by the process that uses it
 */

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, openSync, closeSync, fsyncSync, renameSync, rmSync, statSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { lockDirectory } from './directory-lock.ts'
import { openLmdb, type Database } from './lmdb-database.ts'
import { damaged, StoreRefused } from '../store.ts'

const CHECK = fileURLToPath(new URL('../../../bin/check-store.js', import.meta.url))
const READ = fileURLToPath(new URL('../../../bin/read-store.js', import.meta.url))

export interface DirectoryOptions {
  readonly directory: string
  /** A new name at each call, not guessable: for the store's epoch, and for this process's lock. */
  readonly identifier: () => string
  /** Makes an empty database a store. */
  readonly initialise: (database: Database, epoch: string) => Promise<void>
  /** Wraps the database; for tests that let the disk fail. */
  readonly wrap?: (database: Database) => Database
}

export interface OpenedDirectory {
  /** Of the database. */
  readonly location: string
  readonly open: () => Database
  /** Lets another process have the directory. */
  readonly release: () => Promise<void>
}

/**
 * Takes a data directory, creating a store where none is, and checks that it can be read.
 * @throws StoreRefused when another process holds it, or when it is damaged
 */
export async function openDirectory(options: DirectoryOptions): Promise<OpenedDirectory> {
  const { directory, lock } = await takeDirectory(options)
  try {
    const location = locationIn(directory)
    if (existsSync(location)) await check(location)
    else await create(directory, location, options)
    const { wrap = (database) => database } = options
    return { location, open: () => wrap(openLmdb(location)), release: () => lock.release() }
  } catch (error) {
    await lock.release()
    throw error
  }
}

/**
 * Creates a store where none is, and lets go of the directory.
 * @throws StoreRefused when there is one, or another process holds the directory
 */
export async function createStore(options: Omit<DirectoryOptions, 'wrap'>): Promise<void> {
  const { directory, lock } = await takeDirectory(options)
  try {
    refuseStoreIn(directory)
    await create(directory, locationIn(directory), options)
  } finally {
    await lock.release()
  }
}

/** Of the database. */
export function locationIn(directory: string): string {
  return join(resolve(directory), 'store')
}

/** @throws StoreRefused when there is a store */
export function refuseStoreIn(directory: string): void {
  const location = locationIn(directory)
  if (existsSync(location))
    throw new StoreRefused(`there is a store in ${location} already, and nothing was changed: name an empty --data-dir`)
}

/**
 * All records as of one moment in the order of their keys, while a process may be writing. Changes nothing.
 * @throws StoreRefused when there is no store, or it cannot be read
 */
export async function readRecords(location: string): Promise<{ key: string; value: Buffer }[]> {
  if (!existsSync(location)) throw new StoreRefused(`there is no store in ${location}: is --data-dir right?`)
  const bytes = await runOn(location, READ)
  const records: { key: string; value: Buffer }[] = []
  for (let at = 0; at < bytes.length;) {
    const keyEnd = at + 6 + bytes.readUInt16LE(at)
    const valueEnd = keyEnd + bytes.readUInt32LE(at + 2)
    records.push({ key: bytes.toString('latin1', at + 6, keyEnd), value: bytes.subarray(keyEnd, valueEnd) })
    at = valueEnd
  }
  return records
}

async function takeDirectory(options: Pick<DirectoryOptions, 'directory' | 'identifier'>) {
  const directory = resolve(options.directory)
  try {
    makeDirectory(directory)
  } catch (error) {
    throw new StoreRefused(`cannot create the data directory ${directory}: ${String(error)}`, error)
  }
  return { directory, lock: await lockDirectory(directory, options.identifier()) }
}

/** A crash at any instant leaves either no store or a whole one: a database file without content is damage, not youth. */
async function create(
  directory: string,
  location: string,
  options: Pick<DirectoryOptions, 'identifier' | 'initialise'>,
): Promise<void> {
  const draft = `${location}.new`
  try {
    rmSync(draft, { recursive: true, force: true })
    mkdirSync(draft, { mode: 0o700 })
    const database = openLmdb(draft)
    await options.initialise(database, options.identifier())
    await database.close()
    syncDirectory(draft)
    renameSync(draft, location)
    syncDirectory(directory)
  } catch (error) {
    rmSync(draft, { recursive: true, force: true })
    throw new StoreRefused(`cannot create ${location}: ${String(error)}`, error)
  }
}

/** One by one: where no files can be made, as under /proc, Node's own recursive way never ends. */
function makeDirectory(directory: string): void {
  const missing: string[] = []
  for (let at = directory; !existsSync(at) && at !== dirname(at); at = dirname(at)) missing.push(at)
  for (const at of missing.reverse()) {
    try {
      mkdirSync(at, { mode: 0o700 })
    } catch (error) {
      // Someone else may have been faster.
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    }
    // A directory is there after a power cut only when its parent is synced.
    syncDirectory(dirname(at))
  }
  if (!statSync(directory).isDirectory()) throw new Error('there is something else in its place')
}

function syncDirectory(directory: string): void {
  // Windows does not sync directories; there a rename is as durable as it gets.
  if (process.platform === 'win32') return
  const descriptor = openSync(directory, 'r')
  try {
    fsyncSync(descriptor)
  } finally {
    closeSync(descriptor)
  }
}

/** Reads the whole database. @throws StoreRefused when it is damaged */
async function check(location: string): Promise<void> {
  await runOn(location, CHECK)
}

/**
 * Reads a database in a process of its own: lmdb maps the file into memory, and a damaged page ends the process that
 * touches it without a word.
 * @returns what the script wrote
 */
function runOn(location: string, script: string): Promise<Buffer> {
  if (!existsSync(join(location, 'data.mdb')))
    return Promise.reject(damaged(location, new Error('data.mdb is missing')))
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [script, location], { stdio: ['ignore', 'pipe', 'pipe'] })
    const written: Buffer[] = []
    let said = ''
    child.stdout.on('data', (chunk: Buffer) => written.push(chunk))
    child.stderr.on('data', (chunk: Buffer) => (said = (said + chunk.toString()).slice(0, 2_000)))
    child.on('error', (error) => reject(new StoreRefused(`cannot check ${location}: ${error.message}`, error)))
    child.on('close', (code, signal) => {
      if (code === 0) return resolve(Buffer.concat(written))
      const reason = code === 3 ? said.trim() : `reading data.mdb ends in ${signal ?? `status ${code}`}`
      reject(damaged(location, new Error(reason)))
    })
  })
}
