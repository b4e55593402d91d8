// Not for people: a sidecar starts this as often as it has workers.

// A signal to the process group reaches this one, too. What it means the sidecar decides, who has to deregister first.
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, () => {})
if (!process.features.typescript) await import('tsx')
const { work } = await import('../src/workers/worker.ts')
work()
