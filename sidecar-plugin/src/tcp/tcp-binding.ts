import { LIMITS, PATTERNS } from '@holdfast/registry-client/protocol'
import { parseServiceHost } from '../service-address.ts'

/** A port of this host that stands for a service. */
export interface TcpBinding {
  readonly host: string
  /** 0 for a free one. */
  readonly port: number
  readonly service: string
  readonly namespace: string
}

const FORM = /^(?:(?:\[([0-9A-Fa-f:.]+)\]|([^:[\]=]+)):)?(\d{1,5})=(\S+)$/
const HOST = new RegExp(PATTERNS.host)

/**
 * Reads `[HOST:]PORT=SERVICE[.NAMESPACE]`, an IPv6 address in brackets. Without a host it is 127.0.0.1.
 * @returns the service as it is written, with its namespace if it has one; undefined for what is of another form
 */
export function parseTcpBinding(text: string): Omit<TcpBinding, 'namespace'> | undefined {
  const [, v6, name, digits, service] = FORM.exec(text.trim()) ?? []
  const host = v6 ?? name ?? '127.0.0.1'
  const port = Number(digits)
  if (digits === undefined || port > 65_535 || host.length > LIMITS.hostChars) return undefined
  if (!HOST.test(host)) return undefined
  // A port behind the name would be read over, as that of a URL is.
  if (service!.includes(':') || parseServiceHost(service!, 'default') === undefined) return undefined
  return { host, port, service: service! }
}

export function formatTcpBinding({ host, port, service, namespace }: TcpBinding): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}=${service}.${namespace}`
}
