/**
 * `npm run build`: the packages as they are published, in `dist/`: JavaScript that Node runs without help, with its
 * types. In the tree itself nothing is built; there the sources run.
 */

import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { build as bundle, type Metafile } from 'esbuild'
import ts from 'typescript'

const ROOT = fileURLToPath(new URL('./', import.meta.url))
const PACKAGES = ['registry-client', 'registry-server', 'sidecar-plugin'] as const

/** Stands on every host, so what it takes to load counts a thousand times: its programs hold all that they need. */
const BUNDLED: string = 'sidecar-plugin'

interface Manifest {
  readonly name: string
  readonly version: string
  readonly license?: string
  readonly exports: Record<string, string>
  readonly bin: Record<string, string>
  readonly dependencies: Record<string, string>
}

/**
 * Writes each package into a directory of its name.
 * @param directory is made, or replaced once all is written
 * @throws Error naming each file that cannot be compiled, with the place and the reason
 */
export async function build(directory: string): Promise<void> {
  const made = mkdtempSync(`${path.resolve(directory)}-`)
  try {
    await writePackages(made)
    rmSync(directory, { recursive: true, force: true })
    chmodSync(made, 0o755)
    renameSync(made, directory)
  } finally {
    rmSync(made, { recursive: true, force: true })
  }
}

async function writePackages(directory: string): Promise<void> {
  compile(directory)
  for (const name of PACKAGES) {
    const to = path.join(directory, name)
    const manifest = JSON.parse(readFileSync(path.join(ROOT, name, 'package.json'), 'utf8')) as Manifest
    writePrograms(name, to)
    writeFileSync(path.join(to, 'package.json'), `${JSON.stringify(published(name, manifest), undefined, 2)}\n`)
    if (name === BUNDLED) await bundlePrograms(to, Object.values(manifest.exports).map(plain))
  }
  // They find each other where they lie; all else is found above.
  const scope = path.join(directory, 'node_modules/@holdfast')
  mkdirSync(scope, { recursive: true })
  for (const name of PACKAGES) symlinkSync(path.join('../..', name), path.join(scope, name))
}

/** Of what named a source: what is made of it. */
function plain(text: string): string {
  return text.replaceAll('.ts', '.js')
}

function compile(directory: string): void {
  const { config } = ts.readConfigFile(path.join(ROOT, 'tsconfig.json'), (file) => readFileSync(file, 'utf8')) as {
    config: object
  }
  const sources = PACKAGES.map((name) => `${name}/src`)
  const { options, fileNames } = ts.parseJsonConfigFileContent({ ...config, include: sources }, ts.sys, ROOT, {
    noEmit: false,
    noCheck: true,
    declaration: true,
    rewriteRelativeImportExtensions: true,
    rootDir: ROOT,
    outDir: directory,
  })
  const program = ts.createProgram(fileNames, options)
  // Whether its types are right `npm run check` says.
  const faults = [
    ...program.getOptionsDiagnostics(),
    ...program.getSyntacticDiagnostics(),
    ...program.emit().diagnostics,
  ]
  if (faults.length === 0) return
  const host = { getCanonicalFileName: (file: string) => file, getCurrentDirectory: () => ROOT, getNewLine: () => '\n' }
  throw new Error(ts.formatDiagnostics(faults, host))
}

/** What is started: as in the tree, without the lines that let Node take the sources. */
function writePrograms(name: string, to: string): void {
  mkdirSync(path.join(to, 'bin'), { recursive: true })
  for (const file of readdirSync(path.join(ROOT, name, 'bin'))) {
    const lines = readFileSync(path.join(ROOT, name, 'bin', file), 'utf8').split('\n')
    const kept = lines.filter((line) => !line.includes("'tsx'") && !line.startsWith('// The sources run as they are'))
    const target = path.join(to, 'bin', file)
    writeFileSync(target, plain(kept.join('\n')))
    chmodSync(target, 0o755)
  }
}

function published(name: string, manifest: Manifest): object {
  const dependencies = Object.fromEntries(Object.entries(manifest.dependencies).filter(([key]) => key !== 'tsx'))
  const exports = Object.fromEntries(Object.entries(manifest.exports).map(([key, file]) => [key, plain(file)]))
  if (name !== BUNDLED) return { ...manifest, exports, dependencies }
  // Its types name the client's: whoever writes a layer in TypeScript has that, too.
  const client = '@holdfast/registry-client'
  return {
    ...manifest,
    exports,
    dependencies: {},
    peerDependencies: { [client]: dependencies[client] },
    peerDependenciesMeta: { [client]: { optional: true } },
  }
}

/** Joins programs and exports with all that they import. What several of them need is there once. */
async function bundlePrograms(to: string, exports: readonly string[]): Promise<void> {
  const programs = readdirSync(path.join(to, 'bin')).map((file) => `bin/${file}`)
  const joined = path.join(to, '.joined')
  const { metafile } = await bundle({
    absWorkingDir: to,
    entryPoints: [...programs, ...exports],
    outbase: '.',
    outdir: joined,
    chunkNames: 'src/[name]-[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node20.19',
    metafile: true,
    nodePaths: [path.join(ROOT, 'node_modules')],
    // Packages of CommonJS ask for Node's modules by `require`.
    banner: {
      js: "import { createRequire as makeRequire } from 'node:module';const require=makeRequire(import.meta.url);",
    },
    // A program's text stays in memory for as long as it runs. Names stay in it, and the maps are beside it, for stacks.
    minifyWhitespace: true,
    sourcemap: true,
    legalComments: 'none',
    logLevel: 'silent',
  })
  for (const file of readdirSync(path.join(to, 'src'), { recursive: true, encoding: 'utf8' }))
    if (file.endsWith('.js')) rmSync(path.join(to, 'src', file))
  cpSync(joined, to, { recursive: true })
  rmSync(joined, { recursive: true })
  for (const file of programs) chmodSync(path.join(to, file), 0o755)
  writeFileSync(path.join(to, 'THIRD-PARTY-LICENSES'), licencesOf(metafile, to))
}

/** The terms of every package that is in it, as those ask for. */
function licencesOf({ inputs }: Metafile, from: string): string {
  const inside = /^.*node_modules\/(?:@[^/]+\/)?[^./][^/]*(?=\/)/
  const packages = new Set(Object.keys(inputs).flatMap((file) => inside.exec(path.resolve(from, file)) ?? []))
  return [...packages]
    .sort()
    .map((directory) => {
      const { name, version, license } = JSON.parse(
        readFileSync(path.join(directory, 'package.json'), 'utf8'),
      ) as Manifest
      const terms = readdirSync(directory).find((file) => /^licen[cs]e/i.test(file))
      const text = terms === undefined ? license : readFileSync(path.join(directory, terms), 'utf8').trim()
      if (text === undefined) throw new Error(`${directory} does not say under which terms it may be passed on`)
      return `${name} ${version}\n\n${text}\n`
    })
    .join(`\n${'-'.repeat(80)}\n\n`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const directory = path.join(ROOT, 'dist')
  try {
    await build(directory)
    for (const name of PACKAGES) console.log(path.relative(process.cwd(), path.join(directory, name)))
  } catch (error) {
    console.error((error as Error).message)
    process.exitCode = 1
  }
}
