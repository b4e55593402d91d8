#!/usr/bin/env node
// The sources run as they are: Node from 22.18 on strips the types itself, an older one by tsx.
if (!process.features.typescript) await import('tsx')
const { main } = await import('../src/main.ts')
await main()
