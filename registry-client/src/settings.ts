/**
 * How every program is configured: one zod schema serves flags, environment, file and defaults.
 *
 * A leaf carries its flag and its help text as metadata ({@link leaf}); `--outbound-port` is also
 * `HOLDFAST_OUTBOUND_PORT` and, at its place in the schema, `listeners.outbound.port` of the file. Flags win over the
 * environment, that over the file, that over the defaults. A list's flag may be repeated, which adds to the list; any
 * other may stand once. All problems are reported at once.
 */

import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { closest, distance } from 'fastest-levenshtein'
import { parse as parseYaml, YAMLParseError } from 'yaml'
import * as z from 'zod'
import { parseDuration } from './clock.ts'
import { show } from './shown.ts'

export { show }

/** How a setting appears on the command line. */
export interface Flag {
  /** Without the dashes. Left out: the setting has no flag and no variable, only its place in the file. */
  readonly flag?: string
  readonly doc: string
  /** What stands for the value in the help, for example `URL`. Left out for switches. */
  readonly value?: string
}

const flags = z.registry<Flag>()

/** Gives a setting its flag and its help text. */
export function leaf<T extends z.ZodType>(schema: T, flag: Flag): T {
  const named = schema.clone()
  flags.add(named, flag)
  return named
}

/** A TCP port; 0 asks for a free one. A decimal string counts, since flags and variables are strings. */
export function port(): z.ZodType<number> {
  return z.any().transform((input: unknown, context) => {
    const value = typeof input === 'string' && /^\d{1,5}$/.test(input) ? Number(input) : input
    if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= 65_535) return value
    context.issues.push({ code: 'custom', input, message: `must be 1..65535, got ${show(input)}` })
    return z.NEVER
  })
}

/** A whole number within bounds. */
export function integer(min: number, max: number): z.ZodType<number> {
  return z.any().transform((input: unknown, context) => {
    const value = typeof input === 'string' && /^-?\d{1,15}$/.test(input) ? Number(input) : input
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value
    context.issues.push({ code: 'custom', input, message: `must be ${min}..${max}, got ${show(input)}` })
    return z.NEVER
  })
}

/** A part of a whole, from 0 to 1. */
export function fraction(): z.ZodType<number> {
  return z.any().transform((input: unknown, context) => {
    const value = typeof input === 'string' && /^(?:\d(?:\.\d{1,9})?|\.\d{1,9})$/.test(input) ? Number(input) : input
    if (typeof value === 'number' && value >= 0 && value <= 1) return value
    context.issues.push({ code: 'custom', input, message: `must be a number from 0 to 1, got ${show(input)}` })
    return z.NEVER
  })
}

/** A duration with its unit, in milliseconds. */
export function duration(bounds: { min?: string; max?: string } = {}): z.ZodType<number> {
  const min = parseDuration(bounds.min) ?? 0
  const max = parseDuration(bounds.max) ?? Infinity
  return z.any().transform((input: unknown, context) => {
    const value = parseDuration(input)
    if (value !== undefined && value >= min && value <= max) return value
    const range = bounds.min || bounds.max ? ` from ${bounds.min ?? '0ms'}${bounds.max ? ` to ${bounds.max}` : ''}` : ''
    const message = `must be a duration with its unit${range}, such as 250ms, 15s or 10m, got ${show(input)}`
    context.issues.push({ code: 'custom', input, message })
    return z.NEVER
  })
}

const UNITS_BYTES = { B: 1, KiB: 1024, MiB: 1_048_576, GiB: 1_073_741_824 } as const

/** A size with its unit (`512B`, `64KiB`, `1MiB`), in bytes. */
export function size(): z.ZodType<number> {
  return z.any().transform((input: unknown, context) => {
    const match = typeof input === 'string' ? /^(\d{1,9})(B|KiB|MiB|GiB)$/.exec(input) : null
    if (match) return Number(match[1]) * UNITS_BYTES[match[2] as keyof typeof UNITS_BYTES]
    const message = `must be a size with its unit, such as 512B, 64KiB or 1MiB, got ${show(input)}`
    context.issues.push({ code: 'custom', input, message })
    return z.NEVER
  })
}

/** A switch: `true` or `false`, also as text. */
export function toggle(): z.ZodType<boolean> {
  return z.any().transform((input: unknown, context) => {
    if (input === true || input === 'true') return true
    if (input === false || input === 'false') return false
    context.issues.push({ code: 'custom', input, message: `must be true or false, got ${show(input)}` })
    return z.NEVER
  })
}

/** A list of `item`; on the command line its parts are separated by commas. */
export function listOf<T extends z.ZodType>(item: T): z.ZodType<z.output<T>[]> {
  return z.preprocess((input) => (typeof input === 'string' ? input.split(',') : input), z.array(item).min(1))
}

/** The base URL of an HTTP server, without a trailing slash. */
export function httpUrl(): z.ZodType<string> {
  return z.any().transform((input: unknown, context) => {
    const url = typeof input === 'string' && URL.canParse(input) ? new URL(input) : undefined
    // An @ behind the host is the end of a password that had to be escaped, which nobody could tell from a path.
    const isPlain = url && !url.search && !url.hash && !url.pathname.includes('@')
    if (isPlain && (url.protocol === 'http:' || url.protocol === 'https:')) return url.href.replace(/\/+$/, '')
    const message = `must be a URL such as http://127.0.0.1:7400, got ${show(input)}`
    context.issues.push({ code: 'custom', input, message })
    return z.NEVER
  })
}

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const

/** The settings that every program has. */
export const commonSettings = {
  logLevel: leaf(z.enum(LOG_LEVELS), {
    flag: 'log-level',
    value: 'LEVEL',
    doc: `one of ${LOG_LEVELS.join(', ')}`,
  }).default('info'),
}

export interface Problem {
  /** The setting's place, in dots; the flag itself where it is unknown. */
  readonly path: string
  readonly message: string
}

/** Configuration that cannot be used: every problem at once. */
export class SettingsError extends Error {
  readonly code = 'bad_settings'
  readonly problems: readonly Problem[]
  constructor(problems: readonly Problem[]) {
    super(problems.map((problem) => `${problem.path}: ${problem.message}`).join('\n'))
    this.name = 'SettingsError'
    this.problems = problems
  }
}

export interface Sources {
  /** Arguments without the interpreter and the script. */
  readonly argv: readonly string[]
  readonly env: Readonly<Record<string, string | undefined>>
  readonly readFile?: (path: string) => string
}

export interface Loaded<T> {
  readonly settings: T
  /** Arguments that are not flags, for programs with commands. */
  readonly positionals: readonly string[]
  /** `--help` or `--version` was asked for; the settings are then the defaults. */
  readonly asked?: 'help' | 'version'
}

interface Leaf extends Flag {
  readonly path: readonly string[]
  readonly isSwitch: boolean
  readonly isList: boolean
  readonly fallback: unknown
}

/**
 * Loads the settings of one program from all its sources.
 * @param schema a strict object of settings, nested as its file is; each default stands on its leaf
 * @param sources positionals are refused unless `positionals` is set
 * @throws SettingsError with all problems
 */
export function loadSettings<T extends z.ZodObject>(
  schema: T,
  sources: Sources,
  options: { positionals?: boolean } = {},
): Loaded<z.output<T>> {
  const leaves = leavesOf(schema)
  const problems: Problem[] = []
  const flagged = new Map(leaves.flatMap((item) => (item.flag === undefined ? [] : [[item.flag, item] as const])))
  const { values, positionals } = parseFlags(flagged, sources.argv, problems)
  const asked = values.has('help') ? 'help' : values.has('version') ? 'version' : undefined
  if (asked) {
    const defaults = schema.safeParse({})
    return { settings: (defaults.data ?? {}) as z.output<T>, positionals, asked }
  }
  if (!options.positionals)
    for (const extra of positionals) problems.push({ path: extra, message: 'unexpected argument; settings are flags' })

  const merged: Record<string, unknown> = {}
  const origin = new Map<string, string>()
  const file = values.get('config') ?? sources.env.HOLDFAST_CONFIG
  if (typeof file === 'string') Object.assign(merged, readSettingsFile(file, sources, problems))
  for (const item of flagged.values()) {
    const variable = variableOf(item.flag!)
    const value = values.get(item.flag!) ?? sources.env[variable]
    // `--registry "$UNSET"` must not quietly mean the default; an empty variable is as good as none, as everywhere.
    if (values.get(item.flag!) === '') problems.push({ path: `--${item.flag}`, message: 'needs a value' })
    if (value === undefined || value === '') continue
    origin.set(item.path.join('.'), values.has(item.flag!) ? `--${item.flag}` : variable)
    place(merged, item.path, value)
  }
  const result = schema.safeParse(merged, { reportInput: true })
  if (!result.success)
    for (const problem of problemsOf(result.error, schema)) {
      const from = origin.get(problem.path)
      problems.push(from ? { ...problem, message: `${problem.message} (from ${from})` } : problem)
    }
  if (problems.length > 0 || !result.success) throw new SettingsError(problems)
  deepFreeze(result.data)
  return { settings: result.data, positionals }
}

/** Problems of a zod error, with paths in dots and the nearest known key for an unknown one. */
export function problemsOf(error: z.ZodError, schema: z.ZodType): Problem[] {
  return error.issues.flatMap((issue) => problemsOfIssue(issue, schema, []))
}

function problemsOfIssue(issue: z.core.$ZodIssue, schema: z.ZodType, prefix: readonly PropertyKey[]): Problem[] {
  const path = [...prefix, ...issue.path]
  const at = path.map(String).join('.')
  switch (issue.code) {
    case 'unrecognized_keys': {
      const known = keysAt(schema, path)
      return issue.keys.map((key) => ({
        path: at ? `${at}.${key}` : key,
        message: `unknown key${suggest(key, known)}`,
      }))
    }
    case 'invalid_union': {
      // The branch that came furthest is the one that was meant.
      const branches = issue.errors.map((issues) => issues.flatMap((inner) => problemsOfIssue(inner, schema, path)))
      const depth = (items: readonly Problem[]) => Math.max(0, ...items.map((item) => item.path.split('.').length))
      const best = branches.sort((a, b) => depth(b) - depth(a) || a.length - b.length)[0]
      if (best && best.length > 0 && depth(best) > path.length) return best
      return [{ path: at || '(document)', message: best?.map((item) => item.message).join(', or ') || issue.message }]
    }
    case 'invalid_value':
      return [{ path: at, message: `must be one of ${issue.values.join(', ')}, got ${show(issue.input)}` }]
    case 'invalid_type':
      return [
        issue.input === undefined
          ? { path: at, message: `is required (${issue.expected})` }
          : { path: at || '(document)', message: `must be ${article(issue.expected)}, got ${show(issue.input)}` },
      ]
    default:
      return [{ path: at || '(document)', message: issue.message }]
  }
}

/** `--help` of a program, from the same schema. */
export function helpText(
  usage: string,
  schema: z.ZodObject,
  extra: readonly (readonly [string, string])[] = [],
  footer = '',
): string {
  const rows = leavesOf(schema).flatMap((item) => {
    if (item.flag === undefined) return []
    const fallback = item.fallback === undefined || item.isSwitch ? '' : ` (default ${written(item)})`
    return [[`--${item.flag}${item.value ? ` ${item.value}` : ''}`, `${item.doc}${fallback}`] as const]
  })
  rows.push(
    ['--config FILE', 'settings from a YAML or JSON file'],
    ['--help', 'this text'],
    ['--version', 'the version'],
  )
  const all = [...extra, ...rows]
  const width = Math.max(...all.map(([name]) => name.length)) + 2
  const lines = (items: readonly (readonly [string, string])[]) =>
    items.map(([name, doc]) => `  ${name.padEnd(width)}${doc}`).join('\n')
  const example = leavesOf(schema).find((item) => item.flag !== undefined)?.flag ?? 'config'
  const commands = extra.length > 0 ? `Commands:\n${lines(extra)}\n\n` : ''
  return (
    `${usage}\n\n${commands}Options:\n${lines(rows)}\n\n` +
    `Each option is also a variable: --${example} is ${variableOf(example)}. Options win over variables, those over the file.\n` +
    'Durations and sizes carry their unit: 250ms, 15s, 10m; 512B, 64KiB, 1MiB.\n' +
    footer
  )
}

function written(item: Leaf): string {
  return Array.isArray(item.fallback) ? item.fallback.join(',') : String(item.fallback)
}

function leavesOf(schema: z.ZodType, path: readonly string[] = []): Leaf[] {
  let inner = schema
  let fallback: unknown
  while (!flags.has(inner)) {
    if (inner instanceof z.ZodDefault || inner instanceof z.ZodPrefault) {
      fallback = inner.def.defaultValue
      inner = inner.def.innerType as z.ZodType
    } else if (inner instanceof z.ZodOptional) inner = inner.def.innerType as z.ZodType
    else break
  }
  const flag = flags.get(inner)
  const isList = unwrap(inner) instanceof z.ZodArray
  if (flag) return [{ ...flag, path, isSwitch: flag.value === undefined, isList, fallback }]
  if (!(inner instanceof z.ZodObject)) return []
  return Object.entries(inner.shape as Record<string, z.ZodType>).flatMap(([key, child]) =>
    leavesOf(child, [...path, key]),
  )
}

function parseFlags(flagged: ReadonlyMap<string, Leaf>, argv: readonly string[], problems: Problem[]) {
  const known = new Set([...flagged.keys(), 'config', 'help', 'version'])
  const values = new Map<string, string | boolean>()
  const isSwitch = (name: string) => name === 'help' || name === 'version' || flagged.get(name)?.isSwitch === true
  const { tokens } = parseArgs({
    args: [...argv],
    strict: false,
    allowPositionals: true,
    tokens: true,
    options: Object.fromEntries(
      [...known].map((name) => [name, { type: isSwitch(name) ? ('boolean' as const) : ('string' as const) }]),
    ),
  })
  const positionals: string[] = []
  /** Of an unknown option: what follows is likely its value, which may be a secret and is not repeated. */
  let unknownAt = NaN
  for (const token of tokens) {
    if (token.kind === 'positional' && token.index !== unknownAt + 1) positionals.push(token.value)
    if (token.kind !== 'option') continue
    const name = token.rawName === '-h' ? 'help' : token.name
    if (!known.has(name)) {
      problems.push({ path: token.rawName, message: `unknown option${suggest(name, known, '--')}` })
      if (token.value === undefined) unknownAt = token.index
      continue
    }
    const value = isSwitch(name) ? (token.value ?? true) : token.value
    const before = values.get(name)
    if (value === undefined) problems.push({ path: token.rawName, message: 'needs a value' })
    else if (before === undefined || name === 'help' || name === 'version') values.set(name, value)
    else if (flagged.get(name)?.isList) values.set(name, `${before},${value}`)
    else problems.push({ path: token.rawName, message: 'may stand only once' })
  }
  return { values, positionals }
}

function readSettingsFile(file: string, sources: Sources, problems: Problem[]): Record<string, unknown> {
  try {
    const text = (sources.readFile ?? ((path: string) => readFileSync(path, 'utf8')))(file)
    const document: unknown = parseYaml(text) ?? {}
    if (typeof document === 'object' && !Array.isArray(document)) return document as Record<string, unknown>
    problems.push({ path: file, message: 'must hold a mapping of settings' })
  } catch (error) {
    const reason = error instanceof YAMLParseError ? `not YAML or JSON: ${error.message.split('\n')[0]}` : String(error)
    problems.push({ path: file, message: reason })
  }
  return {}
}

function place(target: Record<string, unknown>, path: readonly string[], value: unknown): void {
  const [head, ...rest] = path as [string, ...string[]]
  if (rest.length === 0) {
    target[head] = value
    return
  }
  const child = target[head]
  // A copy, so that the parsed file stays as it was; a scalar in the way is replaced and shows up as nothing else.
  const next = typeof child === 'object' && child !== null ? { ...(child as Record<string, unknown>) } : {}
  target[head] = next
  place(next, rest, value)
}

function keysAt(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  let inner: unknown = schema
  for (const key of [...path, undefined]) {
    inner = unwrap(inner)
    if (key === undefined) break
    if (inner instanceof z.ZodObject) inner = (inner.shape as Record<PropertyKey, unknown>)[key]
    else if (inner instanceof z.ZodArray) inner = inner.element
    else if (inner instanceof z.ZodRecord) inner = inner.valueType
    else return []
  }
  return inner instanceof z.ZodObject ? Object.keys(inner.shape) : []
}

function unwrap(schema: unknown): unknown {
  let inner = schema
  for (;;) {
    if (inner instanceof z.ZodDefault || inner instanceof z.ZodPrefault || inner instanceof z.ZodOptional)
      inner = inner.def.innerType
    else if (inner instanceof z.ZodPipe) inner = inner.def.out
    else return inner
  }
}

/** `; did you mean X?` where a known word is near, else the known ones. */
export function suggest(word: string, known: Iterable<string>, prefix = ''): string {
  const words = [...known]
  if (words.length === 0) return ''
  const near = closest(word, words)
  if (distance(word, near) <= Math.ceil(near.length / 3)) return `; did you mean ${prefix}${near}?`
  return words.length <= 16 ? `; known: ${words.map((item) => prefix + item).join(', ')}` : ''
}

/** The variable of a flag: `log-level` is `HOLDFAST_LOG_LEVEL`. */
export function variableOf(flag: string): string {
  return `HOLDFAST_${flag.toUpperCase().replaceAll('-', '_')}`
}

function article(type: string): string {
  return `${/^[aeiou]/.test(type) ? 'an' : 'a'} ${type}`
}

function deepFreeze(value: unknown): void {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return
  for (const item of Object.values(value)) deepFreeze(item)
  Object.freeze(value)
}
