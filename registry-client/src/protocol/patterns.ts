/** How the words of the contract are written. */

const OCTET = '(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'
const IPV4 = `(?:${OCTET}\\.){3}${OCTET}`

/** Labels of up to 63; the last is not a number, or the name would be a malformed IPv4 address to most resolvers. */
function dnsName(): string {
  const label = '(?!-)[A-Za-z0-9_-]{1,63}(?<!-)'
  return `(?:${label}\\.)*(?![0-9]+\\.?$)${label}\\.?`
}

/** RFC 4291, section 2.2: eight groups, one run of which may be `::`, the last two of which may be an IPv4 address. */
function ipv6(): string {
  const group = '[0-9A-Fa-f]{1,4}'
  const tail = `(?:${group}:${group}|${IPV4})`
  const forms = [`(?:${group}:){6}${tail}`]
  for (let left = 0; left <= 5; left++) {
    const before = left === 0 ? '' : `(?:${group}:){0,${left - 1}}${group}`
    forms.push(`(?:${before})?::(?:${group}:){${5 - left}}${tail}`)
  }
  forms.push(`(?:(?:${group}:){0,5}${group})?::${group}`, `(?:(?:${group}:){0,6}${group})?::`)
  return `(?:${forms.join('|')})`
}

/** Sources of regular expressions, unanchored inside so that JSON Schema and `RegExp` can both anchor them. */
export const PATTERNS = {
  /** Lower-case letters, digits, `.` and `-`, no `..`: a service name is a host name that a lightweight client can send. */
  service: '^(?!.*\\.\\.)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?$',
  namespace: '^[a-z0-9-]+$',
  zone: '^[a-z0-9-]+$',
  nodeId: '^[A-Za-z0-9][A-Za-z0-9._:-]*$',
  /** A DNS name, an IPv4 address, or an IPv6 address without brackets and zone. */
  host: `^(?:${dnsName()}|${IPV4}|${ipv6()})$`,
  labelKey: '^[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?$',
  /** Printable, without control characters: label values and owners end up in logs and headers. */
  text: '^[^\\u0000-\\u001f\\u007f]*$',
  cursor: '^[A-Za-z0-9_-]{1,64}:[0-9]{1,16}$',
  duration: '^\\d{1,9}(\\.\\d{1,6})?(ms|s|m|h|d)$',
} as const

/** What each pattern takes, for people. */
const IN_WORDS: Readonly<Record<keyof typeof PATTERNS, string>> = {
  service: 'a service name: lower-case letters, digits, . and -, without ..',
  namespace: 'lower-case letters, digits and -',
  zone: 'lower-case letters, digits and -',
  nodeId: 'a node id: letters, digits, . _ : and -, the first a letter or digit',
  host: 'an IP address or a DNS name',
  labelKey: 'a label key: letters, digits, . _ / and -, the first and last a letter or digit',
  text: 'text without control characters',
  cursor: 'epoch:revision',
  duration: 'a duration with its unit, such as 250ms, 15s or 10m',
}

/** What one of {@link PATTERNS} takes, for people; any other pattern as it is. */
export function inWords(pattern: string): string {
  for (const [name, own] of Object.entries(PATTERNS))
    if (own === pattern) return IN_WORDS[name as keyof typeof PATTERNS]
  return pattern
}
