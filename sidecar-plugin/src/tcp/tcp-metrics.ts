/** What Prometheus is told of TCP connections. Read when asked for: the listeners count anyway, and only they name services. */

import { Counter, Gauge, type Registry } from 'prom-client'
import type { TcpTraffic } from './tcp-listener.ts'

export function exposeTcp(register: Registry, read: () => readonly TcpTraffic[]): void {
  const registers = [register]
  const labelled = ({ direction, service, namespace }: TcpTraffic) => ({
    direction,
    service: `${service}.${namespace}`,
  })
  new Counter({
    name: 'holdfast_sidecar_tcp_connections_total',
    help: 'TCP connections accepted, by direction and service.',
    labelNames: ['direction', 'service'],
    registers,
    collect() {
      this.reset()
      for (const traffic of read()) this.inc(labelled(traffic), traffic.opened)
    },
  })
  new Gauge({
    name: 'holdfast_sidecar_tcp_connections_open',
    help: 'TCP connections that have not ended yet.',
    labelNames: ['direction', 'service'],
    registers,
    collect() {
      this.reset()
      for (const traffic of read()) this.inc(labelled(traffic), traffic.open)
    },
  })
  new Counter({
    name: 'holdfast_sidecar_tcp_failures_total',
    help: 'TCP connections that were refused or did not end with both sides having said all, by reason.',
    labelNames: ['direction', 'service', 'reason'],
    registers,
    collect() {
      this.reset()
      for (const traffic of read())
        for (const [reason, count] of Object.entries(traffic.failed)) this.inc({ ...labelled(traffic), reason }, count)
    },
  })
  new Counter({
    name: 'holdfast_sidecar_tcp_bytes_total',
    help: 'Bytes from those who connected (in) and to them (out).',
    labelNames: ['direction', 'service', 'flow'],
    registers,
    collect() {
      this.reset()
      for (const traffic of read()) {
        this.inc({ ...labelled(traffic), flow: 'in' }, traffic.bytesIn)
        this.inc({ ...labelled(traffic), flow: 'out' }, traffic.bytesOut)
      }
    },
  })
}
