/** What can be set, and its defaults. */

import { commonSettings, duration, integer, leaf, port, size, toggle } from '@holdfast/registry-client/settings'
import { inWords, LIMITS, PATTERNS } from '@holdfast/registry-client/protocol'
import { z } from 'zod'
import { parseStoreAddress } from './store/store-address.ts'

const HOST = new RegExp(PATTERNS.host)

export const settings = z.strictObject({
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
          .regex(/^[!-~]*[/]$/, 'must be printable ASCII that ends with a slash'),
        {
          flag: 'etcd-prefix',
          value: 'PREFIX',
          doc: 'what all keys begin with, so that others may use the same etcd',
        },
      ).default('/holdfast/'),
      user: leaf(z.string().min(1), { flag: 'etcd-user', value: 'NAME', doc: 'the user to be to etcd' }).optional(),
      passwordFile: leaf(z.string().min(1), {
        flag: 'etcd-password-file',
        value: 'FILE',
        doc: "holds the user's password",
      }).optional(),
      /** Without a flag: a command line is no place for a secret. */
      password: leaf(z.string().min(1), { doc: "the user's password" }).optional(),
      ca: leaf(z.string().min(1), {
        flag: 'etcd-ca',
        value: 'FILE',
        doc: 'the authority that etcd is trusted by, in PEM; turns TLS on',
      }).optional(),
      cert: leaf(z.string().min(1), {
        flag: 'etcd-cert',
        value: 'FILE',
        doc: 'the certificate to show to etcd, in PEM; turns TLS on',
      }).optional(),
      key: leaf(z.string().min(1), { flag: 'etcd-key', value: 'FILE', doc: 'the key of that certificate' }).optional(),
      maxRequest: leaf(
        size().refine((bytes) => bytes >= 65_536, 'must be at least 64KiB'),
        { doc: 'what etcd takes in one request: its own --max-request-bytes' },
      ).prefault('1536KiB'),
    })
    .superRefine(({ user, password, passwordFile, cert, key }, context) => {
      const issue = (path: string, message: string) =>
        context.addIssue({ code: 'custom', path: [path], message, input: '' })
      if (user === undefined && (password ?? passwordFile) !== undefined) issue('user', 'is needed with a password')
      if (user !== undefined && (password ?? passwordFile) === undefined) issue('passwordFile', 'is needed with a user')
      if (password !== undefined && passwordFile !== undefined) issue('password', 'not together with passwordFile')
      if ((cert === undefined) !== (key === undefined))
        issue(cert === undefined ? 'cert' : 'key', 'a certificate and its key come together')
    })
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
  shutdown: leaf(duration({ min: '0s', max: '10m' }), { doc: 'how long a stop may take before it is forced' }).prefault(
    '10s',
  ),
})

export type RegistryConfig = z.output<typeof settings>
