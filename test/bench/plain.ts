/** The packages as a build would leave them: JavaScript that Node runs without help. */

import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const PACKAGES = ['registry-client', 'sidecar-plugin']

/**
 * Writes them, and `files` besides, into a directory that is there, under the paths that they have here, with `.js` for
 * `.ts`.
 */
export function writePlain(directory: string, files: readonly string[] = []): void {
  mkdirSync(path.join(directory, 'node_modules/@holdfast'), { recursive: true })
  for (const name of readdirSync(path.join(ROOT, 'node_modules')))
    if (name !== '@holdfast' && !name.startsWith('.'))
      symlinkSync(path.join(ROOT, 'node_modules', name), path.join(directory, 'node_modules', name))
  writeFileSync(path.join(directory, 'package.json'), '{"type":"module"}')
  for (const name of PACKAGES) {
    const from = path.join(ROOT, name)
    for (const file of readdirSync(path.join(from, 'src'), { recursive: true, encoding: 'utf8' }))
      if (file.endsWith('.ts')) write(directory, path.join(name, 'src', file))
    // Its exports name the sources.
    const text = readFileSync(path.join(from, 'package.json'), 'utf8').replaceAll('.ts"', '.js"')
    writeFileSync(path.join(directory, name, 'package.json'), text)
    symlinkSync(path.join(directory, name), path.join(directory, 'node_modules/@holdfast', name))
  }
  for (const file of files) write(directory, file)
}

function write(directory: string, file: string): void {
  const { outputText } = ts.transpileModule(readFileSync(path.join(ROOT, file), 'utf8'), {
    compilerOptions: {
      target: ts.ScriptTarget.ES2023,
      module: ts.ModuleKind.ESNext,
      verbatimModuleSyntax: true,
      rewriteRelativeImportExtensions: true,
    },
  })
  const target = path.join(directory, file.replace(/\.ts$/, '.js'))
  mkdirSync(path.dirname(target), { recursive: true })
  writeFileSync(target, outputText)
}
