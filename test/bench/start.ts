/** From the start of a process to its first answer and to all of them, from file, while the registry is dead. */

import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { transformSync as stripTypes } from 'esbuild'
import { clientOf, registryOf } from './memory-registry.ts'
import { builtPackages } from './built.ts'
import { median, print } from './table.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const CHILD = 'test/bench/start-child.ts'
const ROUNDS = 7
const NODES = 100

interface Run {
  /** From spawning to each line, in ms; the last is the end. */
  readonly lines: number[]
  readonly marks: number[]
}

export async function start(): Promise<void> {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-bench-'))
  try {
    const child = path.join(directory, 'child.js')
    writeFileSync(child, stripTypes(readFileSync(path.join(ROOT, CHILD), 'utf8'), { loader: 'ts' }).code)
    writeFileSync(path.join(directory, 'package.json'), '{"type":"module"}')
    const built = pathToFileURL(path.join(await builtPackages(), 'registry-client/src/index.js')).href
    const library = pathToFileURL(path.join(ROOT, 'registry-client/src/index.ts')).href
    const bare = await runs(['-e', 'console.log("first")'])
    const bareMs = median(bare.map(({ lines }) => lines[0]!))
    const rows: (string | number)[][] = [['node -e 0', '', bareMs, '', '', '']]
    const parts: (string | number)[][] = []
    for (const count of [1, 100, 1_000]) {
      const cacheDir = path.join(directory, `cache-${count}`)
      await fill(cacheDir, count)
      for (const [name, args] of [
        ['through tsx', ['--import', 'tsx', path.join(ROOT, CHILD), library]],
        ['as it is published', [child, built]],
      ] as const) {
        const made = await runs([...args, cacheDir, String(count)])
        const [first, all] = [0, 1].map((line) => median(made.map(({ lines }) => lines[line]!))) as [number, number]
        rows.push([`${count.toLocaleString('en')} × ${NODES} nodes`, name, first, first - bareMs, all, all - bareMs])
        const marks = [0, 1, 2, 3, 4].map((mark) => median(made.map((run) => run.marks[mark]!)))
        const steps = marks.map((ms, mark) => ms - (marks[mark - 1] ?? 0))
        parts.push([`${count.toLocaleString('en')} × ${NODES} nodes`, name, ...steps])
      }
    }
    print(
      `ms from the start of a process to its answers from file, the registry dead; medians of ${ROUNDS} (aims beyond Node: 100 and 1,000)`,
      ['', '', 'first', 'beyond Node', 'all', 'beyond Node'],
      rows,
    )
    print('ms of it, in the process', ['', '', 'until it runs', 'imports', 'connect', 'first', 'all'], parts)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

async function fill(cacheDir: string, count: number): Promise<void> {
  const services = Array.from({ length: count }, (_, index) => `service-${index}`)
  const client = await clientOf(
    services,
    registryOf(
      () => NODES,
      () => 100,
    ),
    { cacheDir },
  )
  await client.close()
}

async function runs(args: readonly string[]): Promise<Run[]> {
  // The first fills the caches of files and of tsx.
  await run(args)
  const made: Run[] = []
  for (let round = 0; round < ROUNDS; round++) made.push(await run(args))
  return made
}

function run(args: readonly string[]): Promise<Run> {
  return new Promise((resolve, reject) => {
    const startMs = performance.now()
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], cwd: ROOT })
    const lines: number[] = []
    let marks: number[] = []
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.startsWith('[')) marks = JSON.parse(line) as number[]
      else lines.push(performance.now() - startMs)
    })
    child.once('close', (code) => {
      if (code === 0) resolve({ lines, marks })
      else reject(new Error(`${args.join(' ')} ended with ${code}`))
    })
  })
}
