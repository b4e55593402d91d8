/** The rules of the house that a machine can keep. */

import assert from 'node:assert/strict'
import { readdirSync, readFileSync, existsSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../', import.meta.url))
const PACKAGES = ['registry-client', 'registry-server', 'sidecar-plugin'] as const

/** Static imports and re-exports, dynamic imports, and files run as another process. */
const IMPORT =
  /^(?:import|export)\s[^'"]*?from '([^']+)'|^import '([^']+)'|\bimport\('([^']+)'\)|new URL\('(\.[^']+\.[jt]s)', import\.meta\.url\)/gm

interface SourceFile {
  readonly file: string
  readonly text: string
  readonly imports: readonly string[]
}

function sourcesOf(directory: string): SourceFile[] {
  return readdirSync(path.join(ROOT, directory), { recursive: true, encoding: 'utf8' })
    .filter((file) => /\.(ts|js)$/.test(file) && !file.includes('node_modules'))
    .map((name) => {
      const file = path.join(directory, name)
      const text = readFileSync(path.join(ROOT, file), 'utf8')
      const imports = [...text.matchAll(IMPORT)].map((match) => match.slice(1).find(Boolean)!)
      return { file, text, imports }
    })
}

const all = [...PACKAGES.flatMap((name) => sourcesOf(name)), ...sourcesOf('test')]

test('packages import one another in one direction only', () => {
  const allowed: Record<string, RegExp> = {
    'registry-client': /^$/,
    'registry-server': /^@holdfast\/registry-client\/(protocol|policy|clock|settings|log)$/,
    'sidecar-plugin': /^@holdfast\/registry-client(\/(protocol|policy|clock|settings|log))?$/,
  }
  for (const name of PACKAGES)
    for (const { file, imports } of sourcesOf(`${name}/src`))
      for (const target of imports.filter((item) => item.startsWith('@holdfast/')))
        assert.match(target, allowed[name]!, `${file} imports ${target}`)
})

test('the wire contract imports nothing but the map it is made of', () => {
  const sources = new Map(sourcesOf('registry-client/src').map(({ file, imports }) => [file, imports]))
  const importsOf = (file: string) => sources.get(path.join('registry-client/src', file))
  assert.deepEqual([importsOf('node-map.ts'), importsOf('clock.ts')], [[], []])
  // Each file of the contract may use the map and those above it, so none of them is in a circle.
  const nouns = [
    ...['limits', 'patterns', 'reading', 'names', 'cursor', 'node', 'removal', 'policy-document', 'kept', 'view'],
    ...['proof', 'carry-over', 'frame', 'ping', 'stream-event', 'client-message', 'problem'],
  ].map((noun) => `${noun}.ts`)
  for (const [index, noun] of nouns.entries()) {
    const allowed = ['../node-map.ts', ...nouns.slice(0, index).map((above) => `./${above}`)]
    for (const target of importsOf(`protocol/${noun}`) ?? assert.fail(`there is no protocol/${noun}`))
      assert.ok(allowed.includes(target), `protocol/${noun} imports ${target}`)
  }
  // The index is nothing but all of them, and the only way to them.
  assert.deepEqual(
    importsOf('protocol.ts'),
    nouns.map((noun) => `./protocol/${noun}`),
  )
  const folder = path.join('registry-client/src/protocol/')
  for (const { file, imports } of all.filter((source) => !source.file.startsWith(folder)))
    for (const target of imports.filter((item) => item.startsWith('.')))
      if (path.join(path.dirname(file), target).startsWith(folder))
        assert.equal(file, path.join('registry-client/src/protocol.ts'), `${file} imports ${target}`)
})

test('a package is used through its exports, not by paths into its folders', () => {
  for (const { file, imports } of PACKAGES.flatMap((name) => sourcesOf(`${name}/src`)))
    for (const target of imports.filter((item) => item.startsWith('.'))) {
      const resolved = path.normalize(path.join(path.dirname(file), target))
      assert.equal(resolved.split(path.sep)[0], file.split(path.sep)[0], `${file} imports ${target}`)
    }
})

test('every source file is reached from an entry of its package', () => {
  for (const name of PACKAGES) {
    const sources = new Map(sourcesOf(name).map((source) => [source.file, source]))
    const manifest = JSON.parse(readFileSync(path.join(ROOT, name, 'package.json'), 'utf8')) as {
      bin: Record<string, string>
      exports: Record<string, string>
    }
    const queue = [...Object.values(manifest.bin), ...Object.values(manifest.exports)].map((file) =>
      path.normalize(path.join(name, file)),
    )
    const reached = new Set<string>()
    for (let file = queue.pop(); file !== undefined; file = queue.pop()) {
      if (reached.has(file)) continue
      reached.add(file)
      for (const target of sources.get(file)?.imports ?? [])
        if (target.startsWith('.')) queue.push(path.normalize(path.join(path.dirname(file), target)))
    }
    for (const file of sources.keys()) assert.ok(reached.has(file), `${file} is not used by anything`)
  }
})

test('no file imports itself by way of others, not even for a type', () => {
  for (const name of PACKAGES) {
    const sources = new Map(sourcesOf(`${name}/src`).map((source) => [source.file, source]))
    const finished = new Set<string>()
    const visit = (file: string, way: readonly string[]) => {
      assert.ok(!way.includes(file), `in a circle: ${[...way.slice(way.indexOf(file)), file].join(' -> ')}`)
      if (finished.has(file)) return
      for (const target of sources.get(file)?.imports ?? [])
        if (target.startsWith('.')) visit(path.normalize(path.join(path.dirname(file), target)), [...way, file])
      finished.add(file)
    }
    for (const file of sources.keys()) visit(file, [])
  }
})

test('a dependency is imported where it is declared, and declared where it is imported', () => {
  for (const name of PACKAGES) {
    const manifest = JSON.parse(readFileSync(path.join(ROOT, name, 'package.json'), 'utf8')) as {
      dependencies: Record<string, string>
    }
    const imported = new Set(
      sourcesOf(name)
        .flatMap((source) => source.imports)
        .filter((target) => !target.startsWith('.') && !target.startsWith('node:'))
        .map((target) =>
          target
            .split('/')
            .slice(0, target.startsWith('@') ? 2 : 1)
            .join('/'),
        ),
    )
    assert.deepEqual([...imported].sort(), Object.keys(manifest.dependencies).sort(), name)
  }
})

test('parts never import parts: values come from contracts, and the composer hands the parts over', () => {
  // What any part of a package may use: words, time, pure functions.
  const parts: Record<string, readonly string[]> = {
    'registry-client': ['connection', 'followed-services', 'file-cache', 'selector', 'registrar'],
    'registry-server': ['embedded-store', 'watch-hub', 'leases', 'api'],
    'sidecar-plugin': ['forward', 'registration', 'admin', 'peers', 'listener'],
  }
  const outermost = /\/(client|server|open-store|sidecar|control-plane|data-plane|main|index|cli)\.ts$/
  for (const name of PACKAGES)
    for (const { file, text } of sourcesOf(`${name}/src`)) {
      const values = [...text.matchAll(/^import (?!type )(.*?) from '\.\.?\/(?:[^']*\/)?([^'/]+)\.ts'/gms)]
      for (const [, names, target] of values) {
        // An error class is part of the contract of what throws it.
        const onlyWords = names!.split(/[{},]/).every((item) => /^\s*$|^\s*type |Error\s*$/.test(item))
        const isPart = parts[name]!.includes(target!) || /^(client|server|sidecar|main)$/.test(target!)
        if (isPart && !outermost.test(file)) assert.ok(onlyWords, `${file} imports ${names} from ${target}`)
      }
    }
})

test('nothing is left half done', () => {
  const marks = new RegExp(
    ['TO' + 'DO', 'FIX' + 'ME', '@ts-' + 'ignore', '@ts-' + 'nocheck', 'not ' + 'implemented'].join('|'),
  )
  for (const { file, text } of all) assert.doesNotMatch(text, marks, file)
})

test('no test waits by sleeping, is left out, or runs alone', () => {
  const only = new RegExp('\\b(test|it|describe)\\.(only|todo|skip)' + '\\(')
  for (const { file, text } of all.filter((source) => source.file.endsWith('.test.ts'))) {
    assert.doesNotMatch(text, only, file)
    assert.doesNotMatch(text, /setTimeout\((resolve|r|done),|timers\/promises/, file)
  }
})

test('the top level holds what it should and nothing else', () => {
  const allowed = new Set([
    ...PACKAGES,
    ...[
      'test',
      'build.ts',
      'dist',
      'package.json',
      'package-lock.json',
      'tsconfig.json',
      'README.md',
      'CHANGELOG.md',
      'eslint.config.js',
    ],
    ...['node_modules', 'LICENSE'],
  ])
  for (const name of readdirSync(ROOT)) if (!name.startsWith('.')) assert.ok(allowed.has(name), name)
  assert.ok(existsSync(path.join(ROOT, '.ci/run')))
})
