// A shop: an order reserves its item in the stock, and asks for it first.
import { call, serve } from './sample.js'

serve('shop', async (path, order) => {
  const [, kind, id] = path.split('/')
  const servedBy = `shop ${process.pid}`
  if (kind === 'orders' && order)
    return { order: id, servedBy, item: await call('stock', `/reservations/${id}`, order) }
  if (kind === 'orders') return { order: id, servedBy, item: await call('stock', `/items/${id}`) }
  if (kind === 'prices') return { item: id, price: 19.9, servedBy }
  if (kind === 'quotes' && order) return { item: id, total: 19.9 * order.count, servedBy }
  if (kind === 'health') return { ok: true }
})
