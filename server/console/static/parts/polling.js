/** Asking again and again while a view is shown. */

/**
 * Call `look` now and every `seconds`, while the page is seen; errors are its own business. Returns how to end it, and
 * how to look at once.
 * @param {() => Promise<void>} look
 * @param {number} seconds
 */
export function poll(look, seconds) {
  let timer = 0;
  let ended = false;
  const turn = async () => {
    clearTimeout(timer);
    if (!document.hidden) await look();
    if (!ended) timer = setTimeout(turn, seconds * 1000);
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
