// Starting a job once, however often it has to be asked for.

import { ask, newIdempotencyKey } from "./api.js";

const IN_DOUBT = "The job may have been started all the same; starting it again starts no second one.";

// When an answer gets lost, nobody knows whether a job was started. The same keys go under the same
// idempotency key until that is known; every place that starts jobs has a starter of its own.
export function jobStarter() {
  let attempt = { keys: null, idempotencyKey: "", isInDoubt: false };

  function isSame(keys) {
    return JSON.stringify(keys) === JSON.stringify(attempt.keys);
  }

  return {
    // Those of a job that may or may not have been started, or null.
    keysInDoubt: () => (attempt.isInDoubt ? attempt.keys : null),

    async start(path, keys) {
      if (!isSame(keys)) attempt = { keys, idempotencyKey: newIdempotencyKey(), isInDoubt: false };
      const { idempotencyKey } = attempt;
      try {
        const job = await ask(path, { method: "POST", keys, idempotencyKey });
        attempt = { keys: null, idempotencyKey: "", isInDoubt: false };
        return job;
      } catch (refusal) {
        attempt.isInDoubt = refusal.isInDoubt || (attempt.isInDoubt && refusal.keepsDoubt);
        if (attempt.isInDoubt) refusal.message += ` ${IN_DOUBT}`;
        else attempt.keys = null;
        throw refusal;
      }
    },
  };
}
