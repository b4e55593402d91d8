/** `npm run simulate`: many seeds, or one of them again. See `--help`. */

import { fork, type ChildProcess } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { describe, type Fault } from './faults.ts'
import type { Invariant } from './invariants.ts'
import { PLANTED, plantedEnvironment } from './planted-faults.ts'
import { Edge } from './registry-replica.ts'
import { shrink } from './shrink.ts'
import { MAX_REPLICAS, World, type RunResult } from './world.ts'

const HELP = `npm run simulate -- [options]

Runs the registry's replicas and client libraries in one process, on a virtual clock, a network that drops, delays and
parts, and disks that fail, each run from a seed, and checks after every step what must always be true.

  --seeds N        how many seeds (default 1000)
  --from N         the first (default 1)
  --jobs N         processes (default: one a core)
  --failures N     end after so many failing seeds (default 20)
  --seed N         this one alone, and what fails of it with few faults
  --plan LIST      with --seed: only these faults of its plan, by number, as 3,7; none for no fault
  --trace          with --seed: all that happens
  --no-shrink      do not look for few faults that are enough
  --planted NAME   with a fault of another system put into the product, until it is found:
${Object.entries(PLANTED)
  .map(([name, { seen }]) => `                   ${name}: ${seen}`)
  .join('\n')}
  --help

Exits 1 when a seed fails; with --planted, when none does.`

const PROGRESS_MS = 10_000

/** A run takes a tenth of a second, and on a busy machine a few. */
const LATE_MS = 60_000

/** What a worker tells of one seed. */
interface Report {
  readonly seed: number
  readonly virtualMs: number
  readonly events: number
  readonly checks: number
  readonly failure?: { readonly invariant: Invariant; readonly message: string; readonly atMs: number }
}

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '1000' },
    from: { type: 'string', default: '1' },
    jobs: { type: 'string', default: String(availableParallelism()) },
    failures: { type: 'string', default: '20' },
    seed: { type: 'string' },
    plan: { type: 'string' },
    planted: { type: 'string' },
    trace: { type: 'boolean', default: false },
    'no-shrink': { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})

if (values.help) console.log(HELP)
else if (process.send) await work()
else if (values.seed !== undefined) await replay(numberOf('seed'))
else await many()

function numberOf(name: 'seeds' | 'from' | 'jobs' | 'failures' | 'seed'): number {
  const value = Number(values[name])
  if (Number.isSafeInteger(value) && value >= 0) return value
  console.error(`--${name}: must be a whole number, got ${values[name]}`)
  process.exit(2)
}

function makeEdges(): Promise<Edge[]> {
  return Promise.all(Array.from({ length: MAX_REPLICAS }, () => Edge.create()))
}

// ---- One seed ----

async function replay(seed: number): Promise<void> {
  const edges = await makeEdges()
  const whole = new World({ seed, edges }).plan
  const numbers = values.plan === undefined ? [...whole.keys()] : planNumbers(values.plan, whole.length)
  const trace = values.trace ? (atMs: number, text: string) => console.log(`${seconds(atMs)}  ${text}`) : undefined
  const run = (part: readonly number[]) => new World({ seed, edges, plan: part.map((index) => whole[index]!) }).run()
  const result = await new World({ seed, edges, trace, plan: numbers.map((index) => whole[index]!) }).run()
  printResult(result)
  const { violation } = result
  if (violation === undefined) process.exit(0)
  printPlan(numbers, whole)
  if (!values['no-shrink'] && numbers.length > 0) {
    const small = await shrink(numbers, async (part) => (await run(part)).violation?.invariant === violation.invariant)
    if (small.length < numbers.length) {
      console.log(`\n${small.length} of ${numbers.length} faults are enough:`)
      const again = await run(small)
      printResult(again)
      printPlan(small, whole)
      console.log(`\nnpm run simulate -- --seed ${seed} --plan ${small.join() || 'none'} --trace`)
    }
  }
  process.exit(1)
}

function planNumbers(list: string, count: number): number[] {
  if (list === 'none') return []
  return list.split(',').map((item) => {
    const number = Number(item)
    if (Number.isSafeInteger(number) && number >= 0 && number < count) return number
    console.error(`--plan: ${item} is none of the ${count} faults of this seed, which begin with 0`)
    process.exit(2)
  })
}

function printPlan(numbers: readonly number[], whole: readonly Fault[]): void {
  for (const index of numbers) console.log(`${String(index).padStart(4)}  ${describe(whole[index]!)}`)
}

function printResult({ seed, violation, atMs, virtualMs, events, hash }: RunResult): void {
  const what = `${events} events in ${seconds(virtualMs)} s, ${hash}`
  if (violation) console.log(`seed ${seed} fails at ${seconds(atMs)} s (${what})\n  ${violation.message}`)
  else console.log(`seed ${seed} holds (${what})`)
}

function seconds(ms: number): string {
  return (ms / 1000).toFixed(3)
}

// ---- Many seeds ----

/** Runs every seed that it is sent. */
async function work(): Promise<void> {
  const edges = await makeEdges()
  process.on('message', (seed: number) => {
    void new World({ seed, edges }).run().then(({ virtualMs, events, checks, violation, atMs }) => {
      const failure = violation && { invariant: violation.invariant, message: violation.message, atMs }
      process.send!({ seed, virtualMs, events, checks, ...(failure && { failure }) } satisfies Report)
    })
  })
  process.on('disconnect', () => process.exit(0))
  process.send!('ready')
}

async function many(): Promise<void> {
  const from = numberOf('from')
  const end = from + numberOf('seeds')
  const planted = values.planted
  const startMs = performance.now()
  const failures: Report[] = []
  let next = from
  let done = 0
  let virtualMs = 0
  let checks = 0
  let isStopped = false
  const env = { ...process.env, ...(planted !== undefined && plantedEnvironment(planted)) }
  const preload = planted === undefined ? [] : ['--import', fileURLToPath(new URL('./plant.js', import.meta.url))]
  const speed = () => {
    const s = (performance.now() - startMs) / 1000
    const hours = virtualMs / 3_600_000
    return `${done} seeds, ${failures.length} failed, ${hours.toFixed(1)} simulated hours in ${s.toFixed(0)} s: ${(done / s).toFixed(1)} seeds/s, ${(hours / s).toFixed(2)} hours/s, ${checks} checks`
  }
  const progress = setInterval(() => console.log(speed()), PROGRESS_MS)
  const workers = new Set<ChildProcess>()
  const stop = () => {
    isStopped = true
    for (const worker of workers) worker.kill()
  }
  process.once('SIGINT', stop)
  const isEnough = () =>
    isStopped || next >= end || failures.length >= (planted === undefined ? numberOf('failures') : 1)
  const failed = (report: Report & { readonly failure: NonNullable<Report['failure']> }) => {
    failures.push(report)
    console.log(
      `seed ${report.seed} fails at ${seconds(report.failure.atMs)} s\n  ${report.failure.message.slice(0, 2_000)}`,
    )
  }
  const lane = async () => {
    while (!isEnough()) {
      const worker = fork(fileURLToPath(import.meta.url), { execArgv: [...preload, ...process.execArgv], env })
      workers.add(worker)
      await new Promise<void>((resolve) => {
        let present: number | undefined
        let late: NodeJS.Timeout | undefined
        const give = () => {
          clearTimeout(late)
          present = undefined
          if (isEnough()) return worker.kill()
          const seed = (present = next++)
          late = setTimeout(() => {
            const message = `no end of it after ${LATE_MS} ms of real time`
            failed({ seed, virtualMs: 0, events: 0, checks: 0, failure: { invariant: 'errors', message, atMs: 0 } })
            worker.kill('SIGKILL')
          }, LATE_MS)
          worker.send(seed)
        }
        worker.on('message', (message: Report | 'ready') => {
          if (message !== 'ready') {
            done++
            virtualMs += message.virtualMs
            checks += message.checks
            const { failure } = message
            if (failure) failed({ ...message, failure })
          }
          give()
        })
        worker.on('exit', (code) => {
          clearTimeout(late)
          workers.delete(worker)
          if (code !== null && code !== 0 && !isStopped) {
            console.error(`a worker ended with ${code}${present === undefined ? '' : ` in seed ${present}`}`)
            process.exitCode = 2
            isStopped = true
          }
          resolve()
        })
      })
    }
  }
  await Promise.all(Array.from({ length: Math.max(1, numberOf('jobs')) }, lane))
  clearInterval(progress)
  console.log(speed())
  const [first] = failures.map(({ seed }) => seed).sort((a, b) => a - b)
  if (planted !== undefined) {
    console.log(
      first === undefined ? `${planted} was not found` : `${planted} was found after ${first - from + 1} seeds`,
    )
    process.exitCode ??= first === undefined ? 1 : 0
  } else if (first !== undefined) {
    console.log(`\nnpm run simulate -- --seed ${first}`)
    process.exitCode ??= 1
  }
  if (isStopped) process.exitCode ??= 130
}
