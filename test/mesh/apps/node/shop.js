// A shop: an order asks the stock for its item.
import { call, serve } from './sample.js'

serve('shop', async (path) => {
  const [, kind, id] = path.split('/')
  if (kind === 'orders')
    return { order: id, servedBy: `shop ${process.pid}`, item: await call('stock', `/items/${id}`) }
  if (kind === 'prices') return { item: id, price: 19.9, servedBy: `shop ${process.pid}` }
  if (kind === 'health') return { ok: true }
})
