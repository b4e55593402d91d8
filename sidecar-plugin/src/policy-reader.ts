import { parsePolicy, PolicyError, type Policy } from '@holdfast/registry-client/policy'
import type { PolicyDocument } from '@holdfast/registry-client/protocol'
import type { Log } from '@holdfast/registry-client/log'

/** What a policy document means; undefined for none, and for one that cannot be read. */
export type PolicyReader = (document: PolicyDocument | undefined) => Policy | undefined

/** Reads each policy once. One that cannot be read is as good as none, and is said once. */
export function policyReader(log: Log): PolicyReader {
  const read = new WeakMap<PolicyDocument, Policy | 'unreadable'>()
  return (document) => {
    if (document === undefined) return undefined
    let policy = read.get(document)
    if (policy === undefined) {
      try {
        policy = parsePolicy(document)
      } catch (error) {
        if (!(error instanceof PolicyError)) throw error
        log.error({ errors: error.errors }, 'a policy cannot be read and is not applied')
        policy = 'unreadable'
      }
      read.set(document, policy)
    }
    return policy === 'unreadable' ? undefined : policy
  }
}
