// A stock: it knows how many of an item there are, and asks the shop for the price when it makes an offer.
import { call, serve } from './sample.js'

serve('stock', async (path) => {
  const [, kind, id] = path.split('/')
  if (kind === 'items') return { item: id, left: 7, servedBy: `stock ${process.pid}` }
  if (kind === 'offers')
    return { offer: id, servedBy: `stock ${process.pid}`, price: await call('shop', `/prices/${id}`) }
  if (kind === 'health') return { ok: true }
})
