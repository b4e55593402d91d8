/** Where the state lives, as `--store` says it: `embedded`, or the members of an etcd. */

export type StoreAddress =
  | { readonly kind: 'embedded' }
  | {
      readonly kind: 'etcd'
      /** Each `host:port`. */
      readonly endpoints: readonly string[]
      readonly tls: boolean
    }

const ETCD_PORT = 2379
const FORMS = 'embedded or etcd://HOST:PORT[,HOST:PORT], etcds:// for TLS'

/** @returns why it cannot be read, when that is a text */
export function parseStoreAddress(text: string): StoreAddress | string {
  if (text === 'embedded') return { kind: 'embedded' }
  // First of all, since it is not repeated: what comes before may be a secret.
  if (text.includes('@')) return 'must not hold a user or a password: --etcd-user and --etcd-password-file are for them'
  const [, scheme, rest] = /^(etcds?):\/\/(.*)$/.exec(text) ?? []
  if (scheme === undefined || rest === undefined) return `must be ${FORMS}, got ${JSON.stringify(text.slice(0, 60))}`
  if (/[/?#]/.test(rest.replace(/\/$/, ''))) return 'must end after the members: --etcd-prefix names the keys'
  const endpoints: string[] = []
  for (const member of rest.replace(/\/$/, '').split(',')) {
    const endpoint = endpointOf(member)
    if (endpoint === undefined) return `must be ${FORMS}, got the member ${JSON.stringify(member.slice(0, 60))}`
    if (endpoints.includes(endpoint)) return `names ${endpoint} twice`
    endpoints.push(endpoint)
  }
  return { kind: 'etcd', endpoints, tls: scheme === 'etcds' }
}

function endpointOf(member: string): string | undefined {
  const [, host, port = String(ETCD_PORT)] = /^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?$/.exec(member) ?? []
  if (host === undefined || Number(port) < 1 || Number(port) > 65_535) return undefined
  return URL.canParse(`http://${host}:${port}`) ? `${host}:${Number(port)}` : undefined
}
