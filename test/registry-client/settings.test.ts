import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import * as z from 'zod'
import {
  commonSettings,
  duration,
  helpText,
  httpUrl,
  integer,
  leaf,
  listOf,
  loadSettings,
  port,
  SettingsError,
  show,
  size,
  suggest,
  toggle,
} from '@holdfast/registry-client/settings'

const schema = z.strictObject({
  registry: leaf(listOf(httpUrl()), { flag: 'registry', value: 'URL[,URL]', doc: 'registries' }).prefault([
    'http://127.0.0.1:7400',
  ]),
  listeners: z
    .strictObject({
      outbound: z
        .strictObject({
          port: leaf(port(), { flag: 'outbound-port', value: 'PORT', doc: 'for clients' }).default(7501),
          idle: leaf(duration({ min: '1s', max: '1h' }), { flag: 'idle', value: 'DURATION', doc: 'idle' }).prefault(
            '5m',
          ),
        })
        .prefault({}),
    })
    .prefault({}),
  buffer: leaf(size(), { flag: 'buffer', value: 'SIZE', doc: 'buffer' }).prefault('64KiB'),
  weight: leaf(integer(0, 1000), { flag: 'weight', value: 'N', doc: 'weight' }).optional(),
  json: leaf(toggle(), { flag: 'json', doc: 'as JSON' }).default(false),
  plugins: z.array(z.strictObject({ module: z.string() })).default([]),
  ...commonSettings,
})

function load(argv: string[], env: Record<string, string> = {}, file?: string) {
  return loadSettings(schema, {
    argv: file === undefined ? argv : ['--config', 'holdfast.yaml', ...argv],
    env,
    readFile: (path) => {
      if (path !== 'holdfast.yaml') throw new Error(`ENOENT: ${path}`)
      return file!
    },
  }).settings
}

function problems(run: () => unknown): string[] {
  try {
    run()
  } catch (error) {
    assert.ok(error instanceof SettingsError, String(error))
    assert.equal(error.code, 'bad_settings')
    return error.problems.map(({ path, message }) => `${path}: ${message}`)
  }
  return assert.fail('it was accepted')
}

describe('sources', () => {
  const file = 'listeners:\n  outbound: { port: 3000, idle: 30s }\nbuffer: 1MiB\n'

  test('flags win over the environment, that over the file, that over the defaults', () => {
    const env = { HOLDFAST_OUTBOUND_PORT: '2000', HOLDFAST_IDLE: '20s' }
    const settings = load(['--outbound-port', '1000'], env, file)
    assert.deepEqual(settings.listeners.outbound, { port: 1_000, idle: 20_000 })
    assert.equal(settings.buffer, 1_048_576)
    assert.deepEqual(settings.registry, ['http://127.0.0.1:7400'])
    assert.equal(settings.logLevel, 'info')
    assert.deepEqual(load([], {}, file).listeners.outbound, { port: 3_000, idle: 30_000 })
    assert.deepEqual(load([]).listeners.outbound, { port: 7_501, idle: 300_000 })
  })

  test('an empty variable is none', () => {
    assert.equal(load([], { HOLDFAST_OUTBOUND_PORT: '' }).listeners.outbound.port, 7_501)
  })

  test('lists are separated by commas, and lose the slash at the end', () => {
    assert.deepEqual(load(['--registry=http://a:1/,https://b:2']).registry, ['http://a:1', 'https://b:2'])
  })

  test('the flag of a list may be repeated, which adds to it', () => {
    const { registry } = load(['--registry', 'http://a:1,http://b:2', '--json', '--registry=http://c:3'])
    assert.deepEqual(registry, ['http://a:1', 'http://b:2', 'http://c:3'])
  })

  test('any other flag may stand only once', () => {
    const argv = ['--weight', '1', '--weight', '1', '--json', '--json=false', '--idle=5s', '--config', 'x']
    assert.deepEqual(
      problems(() => load(argv, {}, '')),
      ['--weight', '--json', '--config'].map((flag) => `${flag}: may stand only once`),
    )
  })

  test('a switch needs no value, and may have one', () => {
    assert.equal(load(['--json']).json, true)
    assert.equal(load(['--json=false'], { HOLDFAST_JSON: 'true' }).json, false)
    assert.equal(load([], { HOLDFAST_JSON: 'true' }).json, true)
  })

  test('JSON is a file too, and an empty file is none', () => {
    assert.equal(load([], {}, '{"weight": 7}').weight, 7)
    assert.equal(load([], {}, '').weight, undefined)
  })

  test('the file may be named by a variable', () => {
    const { settings } = loadSettings(schema, { argv: [], env: { HOLDFAST_CONFIG: 'x' }, readFile: () => 'weight: 9' })
    assert.equal(settings.weight, 9)
  })

  test('what is loaded is frozen in every part', () => {
    const settings = load([], {}, 'plugins: [{ module: a }]')
    for (const part of [
      settings,
      settings.listeners,
      settings.listeners.outbound,
      settings.registry,
      settings.plugins[0],
    ])
      assert.ok(Object.isFrozen(part))
  })

  test('positionals are for programs with commands only', () => {
    assert.deepEqual(
      loadSettings(schema, { argv: ['nodes', 'stock', '--json'], env: {} }, { positionals: true }).positionals,
      ['nodes', 'stock'],
    )
    assert.deepEqual(
      problems(() => load(['stray'])),
      ['stray: unexpected argument; settings are flags'],
    )
  })

  test('help and version are answered before anything is checked', () => {
    assert.equal(loadSettings(schema, { argv: ['--help', '--outbound-port', 'x'], env: {} }).asked, 'help')
    assert.equal(loadSettings(schema, { argv: ['-h'], env: {} }).asked, 'help')
    assert.equal(loadSettings(schema, { argv: ['--version'], env: {} }).asked, 'version')
  })
})

describe('problems', () => {
  test('are told all at once, each with its path and where it came from', () => {
    const found = problems(() =>
      load(
        ['--outbound-port', '0x10', '--weigth=5', '--idle'],
        { HOLDFAST_BUFFER: '64' },
        'weight: heavy\nlogLevel: loud\nplugins: [{}]\n',
      ),
    )
    assert.deepEqual(found.sort(), [
      '--idle: needs a value',
      '--weigth: unknown option; did you mean --weight?',
      'buffer: must be a size with its unit, such as 512B, 64KiB or 1MiB, got 64 (from HOLDFAST_BUFFER)',
      'listeners.outbound.port: must be 1..65535, got 0x10 (from --outbound-port)',
      'logLevel: must be one of trace, debug, info, warn, error, fatal, silent, got loud',
      'plugins.0.module: is required (string)',
      'weight: must be 0..1000, got heavy',
    ])
  })

  test('what follows an unknown option is not repeated: it may be a secret', () => {
    const found = problems(() => load(['--pasword', 'hunter2', 'stray']))
    assert.deepEqual(
      found.filter((text) => /hunter2/.test(text)),
      [],
    )
    assert.equal(found.length, 2)
    assert.ok(found.includes('stray: unexpected argument; settings are flags'))
  })

  test('a file names its places as it is nested', () => {
    assert.deepEqual(
      problems(() => load([], {}, 'listeners: { outbound: { port: "0x10" } }')),
      ['listeners.outbound.port: must be 1..65535, got 0x10'],
    )
  })

  for (const [what, file, expected] of [
    [
      'a bare number for a duration',
      'listeners: { outbound: { idle: 30 } }',
      'listeners.outbound.idle: must be a duration with its unit from 1s to 1h, such as 250ms, 15s or 10m, got 30',
    ],
    [
      'a duration out of bounds',
      'listeners: { outbound: { idle: 2h } }',
      'listeners.outbound.idle: must be a duration with its unit from 1s to 1h, such as 250ms, 15s or 10m, got 2h',
    ],
    [
      'a bare number for a size',
      'buffer: 64',
      'buffer: must be a size with its unit, such as 512B, 64KiB or 1MiB, got 64',
    ],
    [
      'a port beyond all ports',
      'listeners: { outbound: { port: 65536 } }',
      'listeners.outbound.port: must be 1..65535, got 65536',
    ],
    [
      'a port that is no whole number',
      'listeners: { outbound: { port: 80.5 } }',
      'listeners.outbound.port: must be 1..65535, got 80.5',
    ],
    ['a switch that is a word', 'json: yes please', 'json: must be true or false, got yes please'],
    ['no list', 'registry: []', 'registry: Too small: expected array to have >=1 items'],
    [
      'a URL that is none',
      'registry: [ftp://a]',
      'registry.0: must be a URL such as http://127.0.0.1:7400, got ftp://a',
    ],
    ['an unknown key near a known one', 'lisseners: {}', 'lisseners: unknown key; did you mean listeners?'],
    [
      'an unknown key deep inside',
      'listeners: { outbound: { prot: 1 } }',
      'listeners.outbound.prot: unknown key; did you mean port?',
    ],
    ['a scalar in place of a section', 'listeners: 5', 'listeners: must be an object, got 5'],
    ['a list in place of all settings', '- a', 'holdfast.yaml: must hold a mapping of settings'],
    ['a word in place of all settings', 'hello', 'holdfast.yaml: must hold a mapping of settings'],
  ] as const)
    test(`${what} is refused`, () =>
      assert.deepEqual(
        problems(() => load([], {}, file)),
        [expected],
      ))

  test('malformed YAML is named with its file', () => {
    const [found, ...more] = problems(() => load([], {}, 'a: [1, 2\nb: }'))
    assert.match(found!, /^holdfast\.yaml: not YAML or JSON: .* at line \d/)
    assert.deepEqual(more, [])
  })

  test('a file that is missing is named', () => {
    assert.match(problems(() => load(['--config', 'nowhere.yaml']))[0]!, /^nowhere\.yaml: .*ENOENT/)
  })

  test('a file that bites its own tail is only a file with a problem', () => {
    assert.match(problems(() => load([], {}, 'weight: &a [*a]'))[0]!, /^weight: must be 0\.\.1000, got an array$/)
  })

  test('an unknown word without a near one lists what is known', () => {
    assert.equal(suggest('zzz', ['get', 'apply']), '; known: get, apply')
    assert.equal(suggest('aply', ['get', 'apply']), '; did you mean apply?')
    assert.equal(suggest('x', []), '')
  })

  test('values in messages are short and on one line, whatever they are', () => {
    assert.equal(show('a\nb\u001b[31m'), 'a?b?[31m')
    assert.equal(show('x'.repeat(500)).length, 60)
    assert.equal(show(undefined), 'nothing')
    assert.equal(
      show(() => {}),
      'function',
    )
    const deep = JSON.parse(`${'['.repeat(200_000)}${']'.repeat(200_000)}`) as unknown
    assert.equal(show(deep), 'an array')
  })
})

test('the help lists every flag with its default, from the same schema', () => {
  const help = helpText('Usage: x', schema, [['go', 'goes']], 'the end')
  assert.match(help, /^Usage: x\n\nCommands:\n {2}go +goes\n/)
  assert.match(help, /--outbound-port PORT +for clients \(default 7501\)/)
  assert.match(help, /--registry URL\[,URL\] +registries \(default http:\/\/127\.0\.0\.1:7400\)/)
  assert.match(help, /--idle DURATION +idle \(default 5m\)/)
  assert.match(help, /--json +as JSON\n/)
  assert.match(help, /--weight N +weight\n/)
  for (const flag of ['--config FILE', '--help', '--version', '--log-level LEVEL'])
    assert.ok(help.includes(`  ${flag} `), flag)
  assert.ok(help.endsWith('the end'))
})

test('an empty flag is refused, an empty variable is none', () => {
  assert.deepEqual(
    problems(() => load(['--registry', '', '--outbound-port='])),
    ['--registry: needs a value', '--outbound-port: needs a value'],
  )
  assert.deepEqual(load([], { HOLDFAST_REGISTRY: '' }).registry, ['http://127.0.0.1:7400'])
})
