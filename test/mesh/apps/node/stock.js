// A stock: it knows how many of an item there are, and asks the shop for the price when it makes an offer.
import { call, serve } from './sample.js'

serve('stock', async (path, order) => {
  const [, kind, id] = path.split('/')
  const servedBy = `stock ${process.pid}`
  if (kind === 'items') return { item: id, left: 7, servedBy }
  if (kind === 'reservations' && order) return { item: id, reserved: order.count, servedBy }
  if (kind === 'offers' && order) return { offer: id, servedBy, price: await call('shop', `/quotes/${id}`, order) }
  if (kind === 'offers') return { offer: id, servedBy, price: await call('shop', `/prices/${id}`) }
  if (kind === 'health') return { ok: true }
})
