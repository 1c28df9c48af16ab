/** Asking again and again while a view is shown. */

const DUTY = 10; // what takes the server long is asked for after a pause this many times as long

/**
 * Call `look` now and every `seconds`, while the page is seen, until it returns false; errors are its own business.
 * Returns how to end it, and how to look at once.
 * @param {() => Promise<void | boolean>} look
 * @param {number} seconds
 */
export function poll(look, seconds) {
  let timer = 0;
  let ended = false;
  const turn = async () => {
    clearTimeout(timer);
    const began = performance.now();
    const again = document.hidden || (await look()) !== false;
    const pause = Math.max(seconds * 1000, (performance.now() - began) * DUTY);
    if (!ended && again) timer = setTimeout(turn, pause);
  };
  turn();
  return {
    now: turn,
    stop() {
      ended = true;
      clearTimeout(timer);
    },
  };
}
