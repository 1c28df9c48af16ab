/** What this tab remembers: the key, until the tab is closed; and of this browser, the colours. */

const KEY = "hotswap.key";
const THEME = "hotswap.theme";

export const session = {
  /** @returns {string} */
  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  },

  /** @param {string} key */
  set key(key) {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    document.dispatchEvent(new CustomEvent("keychange"));
  },

  /** The key's end, which is not enough to use it. @returns {string} */
  get shownKey() {
    return this.key.length > 12 ? `…${this.key.slice(-4)}` : "…";
  },
};

export const THEMES = ["system", "light", "dark"];

export const theme = {
  /** @returns {string} one of THEMES */
  get now() {
    return document.documentElement.dataset.theme ?? "system";
  },

  /** @param {string} name one of THEMES */
  set now(name) {
    if (name === "system") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem(THEME);
    } else {
      document.documentElement.dataset.theme = name;
      localStorage.setItem(THEME, name);
    }
  },
};
