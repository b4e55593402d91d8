/** What can be set, and its defaults. */

import { commonSettings, duration, integer, leaf, port, size, toggle } from '@holdfast/registry-client/settings'
import { inWords, LIMITS, PATTERNS } from '@holdfast/registry-client/protocol'
import * as z from 'zod'
import { parseStoreAddress } from './store/store-address.ts'

const HOST = new RegExp(PATTERNS.host)
const ETCD_DEFAULTS = { prefix: '/holdfast/', maxRequest: 1_572_864 }

/** Text that no message repeats, whatever is given in its place. */
function secret(): z.ZodType<string> {
  return z.any().transform((input: unknown, context) => {
    if (typeof input === 'string' && input !== '') return input
    context.issues.push({ code: 'custom', input: '', message: 'must be text; in quotes, where it could be a number' })
    return z.NEVER
  })
}

/** Rules between settings are checked also where one of them has a problem, so that all are told at once. */
const ALWAYS = {
  when: ({ value }: { readonly value: unknown }) => typeof value === 'object' && value !== null,
}

const allSettings = z.strictObject({
  host: leaf(
    z.string().superRefine((value, context) => {
      if (value.length <= LIMITS.hostChars && HOST.test(value)) return
      const message = `must be ${inWords(PATTERNS.host)}, got ${JSON.stringify(value.slice(0, 60))}`
      context.addIssue({ code: 'custom', message, input: value })
    }),
    {
      flag: 'host',
      value: 'ADDRESS',
      doc: 'the address to listen on; anything but loopback lets the network in',
    },
  ).default('127.0.0.1'),
  port: leaf(port(), { flag: 'port', value: 'PORT', doc: 'the port of the HTTP API; 0 picks a free one' }).default(
    7400,
  ),
  dataDir: leaf(z.string().min(1), {
    flag: 'data-dir',
    value: 'DIR',
    doc: 'where the embedded store keeps its data; one registry each',
  }).default('./holdfast-data'),
  newEpoch: leaf(toggle(), {
    flag: 'new-epoch',
    doc: 'for one start on a restored backup: gives the store a new identity, so that clients who are ahead of it follow it',
  }).default(false),
  store: leaf(
    z.string().superRefine((value, context) => {
      const address = parseStoreAddress(value)
      if (typeof address === 'string') context.addIssue({ code: 'custom', message: address, input: '' })
    }),
    {
      flag: 'store',
      value: 'STORE',
      doc: 'where the state lives: embedded, or etcd://HOST:PORT[,HOST:PORT]; etcds:// for TLS',
    },
  ).default('embedded'),
  storeTimeout: leaf(duration({ min: '1s', max: '24h' }), {
    flag: 'store-timeout',
    value: 'TIME',
    doc: 'how long a start waits for etcd before it gives up; without it, for ever',
  }).optional(),
  etcd: z
    .strictObject({
      prefix: leaf(
        z
          .string()
          .max(128)
          .regex(/^[/]([!-~]*[/])?$/, 'must be printable ASCII that begins and ends with a slash'),
        {
          flag: 'etcd-prefix',
          value: 'PREFIX',
          doc: 'what all keys begin with, so that others may use the same etcd',
        },
      ).default(ETCD_DEFAULTS.prefix),
      user: leaf(z.string().min(1), {
        flag: 'etcd-user',
        value: 'NAME',
        doc: "etcd's name for this registry",
      }).optional(),
      passwordFile: leaf(z.string().min(1), {
        flag: 'etcd-password-file',
        value: 'FILE',
        doc: "holds that user's password",
      }).optional(),
      /** Without a flag: a command line is no place for a secret. */
      password: leaf(secret(), { doc: "the user's password" }).optional(),
      ca: leaf(z.string().min(1), {
        flag: 'etcd-ca',
        value: 'FILE',
        doc: "the authority that etcd's certificate must be from, in PEM; turns TLS on",
      }).optional(),
      cert: leaf(z.string().min(1), {
        flag: 'etcd-cert',
        value: 'FILE',
        doc: 'the certificate to show to etcd, in PEM; turns TLS on',
      }).optional(),
      key: leaf(z.string().min(1), {
        flag: 'etcd-key',
        value: 'FILE',
        doc: 'the key of that certificate',
      }).optional(),
      maxRequest: leaf(
        size().refine((bytes) => bytes >= 65_536, 'must be at least 64KiB'),
        { doc: 'what etcd takes in one request: its own --max-request-bytes' },
      ).default(ETCD_DEFAULTS.maxRequest),
    })
    .superRefine(({ user, password, passwordFile, cert, key }, context) => {
      const issue = (path: string, message: string) =>
        context.addIssue({ code: 'custom', path: [path], message, input: '' })
      const hasPassword = (password ?? passwordFile) !== undefined
      if (user === undefined && hasPassword) issue('user', 'is needed with a password; --etcd-user names one')
      if (user !== undefined && !hasPassword)
        issue('passwordFile', 'is needed with a user; --etcd-password-file names one')
      if (password !== undefined && passwordFile !== undefined)
        issue('password', 'stands beside etcd.passwordFile; only one of them can be meant')
      if (cert === undefined && key !== undefined) issue('cert', 'is needed with a key; --etcd-cert names one')
      if (cert !== undefined && key === undefined) issue('key', 'is needed with a certificate; --etcd-key names one')
    }, ALWAYS)
    .prefault({}),
  logLevel: commonSettings.logLevel,
  history: z
    .strictObject({
      /** A client that was away for fewer revisions gets only what changed; one that was away for more, a snapshot. */
      revisions: leaf(integer(10_000, 1_000_000), { doc: 'revisions kept in history' }).default(10_000),
      /** Bounds the memory of history when revisions are large batches: some 100 bytes each. */
      changes: leaf(integer(10_000, 100_000_000), { doc: 'changes of single nodes kept in history' }).default(
        2_000_000,
      ),
    })
    .prefault({}),
  leases: z
    .strictObject({
      max: leaf(integer(1, 10_000_000), { doc: 'leases held at once; more are refused' }).default(200_000),
      /** Longer than most networks stay parted; shorter than what clients bear of nodes that are really gone. */
      hold: leaf(duration({ min: '0s', max: '1h' }), {
        doc: 'how long leases of several hosts that fell silent together are kept; 0s: they are not',
      }).prefault('5m'),
    })
    .prefault({}),
  overrides: z
    .strictObject({
      /** They outlive their nodes, so without a bound node ids that never return would pile up. */
      max: leaf(integer(1, 1_000_000), { doc: 'overrides held at once; more are refused' }).default(100_000),
    })
    .prefault({}),
  watch: z
    .strictObject({
      maxSubscribers: leaf(integer(1, 1_000_000), { doc: 'watch streams at once; more are refused' }).default(50_000),
      /** Smaller, and a burst of changes counts as slowness; larger, and many slow readers fill the memory. */
      maxBuffer: leaf(
        size().refine((bytes) => bytes >= 65_536, 'must be at least 64KiB'),
        { doc: 'bytes that may wait for one reader before it counts as slow' },
      ).prefault('1MiB'),
      stall: leaf(duration({ min: '1s', max: '1h' }), {
        doc: 'how long a slow reader may take nothing before it is disconnected',
      }).prefault('60s'),
    })
    .prefault({}),
  /** Longer than a client takes to read what was sent last; shorter than what an init system waits before it kills. */
  shutdown: leaf(duration({ min: '0s', max: '10m' }), {
    doc: 'how long a stop may take before it is forced',
  }).prefault('10s'),
})

export const settings = allSettings.superRefine(refuseIdleSettings, ALWAYS)

export type RegistryConfig = z.output<typeof settings>

/** Whoever sets up the way to etcd means to use it: a start on an empty store of its own would look like a loss. */
function refuseIdleSettings(
  { store, storeTimeout, etcd }: Pick<RegistryConfig, 'store' | 'storeTimeout' | 'etcd'>,
  context: z.RefinementCtx,
): void {
  if (store !== 'embedded' || typeof etcd !== 'object') return
  const unset: Record<string, unknown> = { ...ETCD_DEFAULTS }
  const idle = Object.entries({ ...etcd }).filter(([name, value]) => value !== undefined && value !== unset[name])
  const paths = idle.map(([name]) => ['etcd', name])
  if (storeTimeout !== undefined) paths.unshift(['storeTimeout'])
  for (const path of paths)
    context.addIssue({ code: 'custom', path, message: 'is for etcd, and --store is embedded', input: '' })
}
