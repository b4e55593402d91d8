/** Several caches on one disk, in every order in which their steps on shared files can fall, and with every crash. */

import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { View } from '@holdfast/registry-client/protocol'
import type { Disk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { parseView, renderView } from '../../registry-client/src/files/view-text.ts'
import { FailingDisk } from '../support/failing-disk.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { viewOf } from '../support/sample-views.ts'

const FILE = '/cache/default/stock.json'
const PREVIOUS = `${FILE}.previous`

/**
 * Lets one step happen at a time: each operation on a name that others use waits until it is chosen. What a process does
 * to a file of a name of its own commutes with all else, so its place among the steps does not matter.
 */
class Steps {
  readonly #waiting = new Map<string, { readonly step: string; readonly go: () => void }>()
  #isFree = false

  disk(actor: string, disk: Disk): Disk {
    return new Proxy(disk, {
      get: (target, name: keyof Disk) => {
        const operation = Reflect.get(target, name) as (...args: unknown[]) => Promise<unknown>
        if (name === 'watch') return operation.bind(target)
        return async (...args: unknown[]) => {
          const shared = args.some((item) => item === FILE || item === PREVIOUS)
          if (shared && !this.#isFree)
            await new Promise<void>((go) => this.#waiting.set(actor, { step: `${actor} ${name}`, go }))
          return operation.apply(target, args)
        }
      },
    })
  }

  /** Who has a step to take, in a fixed order. */
  get actors(): string[] {
    return [...this.#waiting.keys()].sort()
  }

  async take(actor: string): Promise<string> {
    const { step, go } = this.#waiting.get(actor)!
    this.#waiting.delete(actor)
    go()
    await settle()
    return step
  }

  /** The actor takes no more steps. */
  crash(actor: string): void {
    this.#waiting.delete(actor)
  }

  free(): void {
    this.#isFree = true
    for (const { go } of this.#waiting.values()) go()
    this.#waiting.clear()
  }
}

/** Plays `play` with every sequence of choices; a choice is one of so many options, asked for with `choose`. */
async function everyWay(play: (choose: (options: number) => number) => Promise<void>): Promise<number> {
  let choices: number[] = []
  for (let count = 1; ; count++) {
    const sizes: number[] = []
    await play((options) => {
      const choice = choices[sizes.length] ?? 0
      sizes.push(options)
      return choice
    })
    choices = sizes.map((_, index) => choices[index] ?? 0)
    while (choices.length > 0 && choices.at(-1)! + 1 >= sizes[choices.length - 1]!) choices.pop()
    if (choices.length === 0) return count
    choices[choices.length - 1]!++
  }
}

interface Scene {
  readonly before: Readonly<Record<string, string>>
  /** What each actor does. */
  readonly acts: Readonly<Record<string, (cache: FileCache) => unknown>>
  /** The revision that the file holds in the end when nobody crashed. */
  readonly end: number
  readonly crashes: boolean
}

const textOf = (cursor: string) => renderView(viewOf(cursor, [cursor.replace(':', '-')])).text
const save = (cursor: string) => (cache: FileCache) => cache.save(viewOf(cursor, [cursor.replace(':', '-')]))
const load = async (cache: FileCache) => assert.ok(await cache.load('default', 'stock'), 'nothing was loaded')

function onDisk(disk: FailingDisk, file: string): View | undefined {
  try {
    return parseView(disk.files.get(file)?.content ?? '', 'default', 'stock').view
  } catch {
    return undefined
  }
}

async function play(scene: Scene, choose: (options: number) => number): Promise<{ wentBack: boolean }> {
  const clock = new ManualClock()
  const disk = new FailingDisk(clock)
  const steps = new Steps()
  for (const [file, text] of Object.entries(scene.before)) disk.write(file, text)
  const caches = new Map<string, FileCache>()
  const done: string[] = []
  const fail = (reason: string): never => assert.fail(`${reason} after ${done.join(', ')}`)
  for (const [actor, act] of Object.entries(scene.acts)) {
    const cache = new FileCache({ directory: '/cache', disk: steps.disk(actor, disk), clock, log: new MemoryLog() })
    const changed = (namespace: string, service: string) => void cache.load(namespace, service)
    await cache.open({ changed })
    caches.set(actor, cache)
    void Promise.resolve(act(cache)).catch((error: unknown) => done.push((error as Error).message))
  }
  await settle()

  let wentBack = false
  let crashed = false
  /** The revision in the file when an actor looked at it last. */
  const seen = new Map<string, number>()
  let last = onDisk(disk, FILE)
  while (steps.actors.length > 0) {
    const { actors } = steps
    const choice = choose(scene.crashes && !crashed ? 2 * actors.length : actors.length)
    const actor = actors[choice % actors.length]!
    if (choice >= actors.length) {
      crashed = true
      steps.crash(actor)
      caches.delete(actor)
      done.push(`${actor} crashes`)
    } else done.push(await steps.take(actor))
    const current = onDisk(disk, FILE)
    if (last && !current) fail('the file is gone')
    if (!current && !onDisk(disk, PREVIOUS) && Object.keys(scene.before).length > 0) fail('no generation loads')
    const revision = current?.cursor.revision ?? 0
    if (/startsWith|stat/.test(done.at(-1)!)) seen.set(actor, revision)
    else if (last && revision < last.cursor.revision) {
      wentBack = true
      // Only over what came after its last look.
      if ((seen.get(actor) ?? Infinity) > revision) fail('an older view did not give way')
    }
    last = current
  }
  if (done.includes('nothing was loaded')) fail('a reader found nothing')

  steps.free()
  await clock.advance(11_000)
  const revision = onDisk(disk, FILE)?.cursor.revision
  if (!crashed && revision !== scene.end) fail(`${revision} instead of ${scene.end} at the end`)
  for (const cache of caches.values()) await cache.close()
  const leftovers = [...disk.files.keys()].filter((file) => file.endsWith('.tmp'))
  if (!crashed && leftovers.length > 0) fail(`${leftovers.join()} left`)
  return { wentBack }
}

const START = { [FILE]: textOf('e:5') }
const BROKEN = { [FILE]: textOf('e:5').slice(0, -9), [PREVIOUS]: textOf('e:4') }

const SCENES: Record<string, Scene> = {
  'two writers, one of which crashes': {
    before: START,
    acts: { newer: save('e:7'), older: save('e:6') },
    end: 7,
    crashes: true,
  },
  'two writers where there is nothing': {
    before: {},
    acts: { newer: save('e:7'), older: save('e:6') },
    end: 7,
    crashes: true,
  },
  'a broken file, one who writes it and one who reads it': {
    before: BROKEN,
    acts: { writer: save('e:7'), reader: load },
    end: 7,
    crashes: true,
  },
  'a broken file that two find': { before: BROKEN, acts: { one: load, two: load }, end: 4, crashes: false },
}

describe('in every order of steps', () => {
  for (const [name, scene] of Object.entries(SCENES))
    test(name, async (context) => {
      let back = 0
      const count = await everyWay(async (choose) => {
        const { wentBack } = await play(scene, choose)
        if (wentBack) back++
      })
      context.diagnostic(`${count} orders; in ${back} the file went back for a while`)
    })

  test('a date goes only to the view that was confirmed', async () => {
    await everyWay(async (choose) => {
      const clock = new ManualClock()
      const disk = new FailingDisk(clock)
      disk.write(FILE, textOf('e:5'))
      await clock.advance(100_000)
      const steps = new Steps()
      const make = (actor: string) =>
        new FileCache({ directory: '/cache', disk: steps.disk(actor, disk), clock, log: new MemoryLog() })
      const reader = new FileCache({ directory: '/cache', disk, clock, log: new MemoryLog() })
      const [dating, writing] = [make('dating'), make('writing')]
      const loading = dating.load('default', 'stock')
      await settle()
      await steps.take('dating')
      await loading
      dating.confirm(viewOf('e:5', ['e-5']))
      // A peer had it, and it is old.
      writing.save(viewOf('e:6', ['e-6']), 50_000)
      await settle()
      while (steps.actors.length > 0) {
        const { actors } = steps
        await steps.take(actors[choose(actors.length)]!)
        const { view, ageMs } = (await reader.load('default', 'stock'))!
        if (view.cursor.revision === 6) assert.equal(ageMs, 50_000)
      }
    })
  })
})
