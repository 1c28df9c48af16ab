/** Elements made of text: nothing here, nor anywhere in the console, writes markup. */

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | number | null | undefined | false | any[]} Child */

/**
 * An HTML element. Of `props`, `on…` are listeners, `data` its dataset, `class` its classes, true and false attributes
 * that are there or not, `value`, `checked`, `disabled` and such are set as properties.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...Child} children
 * @returns {HTMLElement & Record<string, any>}
 */
export function h(tag, props = {}, ...children) {
  /** @type {HTMLElement & Record<string, any>} */
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (["value", "checked", "selected", "indeterminate"].includes(name)) node[name] = value;
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, String(value));
  }
  append(node, children);
  if (props.value !== undefined && tag === "select") node.value = props.value; // its options are there only now
  return node;
}

/**
 * An SVG element.
 * @param {string} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {...Child} children
 */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  append(node, children);
  return node;
}

/** @param {Node} node @param {Child[]} children */
function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.appendChild(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/**
 * Put `children` in the place of what `node` holds. Whoever had the focus there has it again, found by its `data-key`.
 * @param {HTMLElement} node
 * @param {...Child} children
 */
export function fill(node, ...children) {
  const active = document.activeElement;
  const key = active instanceof HTMLElement && node.contains(active) ? active.dataset.key : undefined;
  node.replaceChildren();
  append(node, children);
  if (key) /** @type {HTMLElement | null} */ (node.querySelector(`[data-key="${CSS.escape(key)}"]`))?.focus();
}

/** Set the text of `node`, if it is another. @param {Node} node @param {string} text */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Let `parent` have one child for each of `items`, in their order: those of known keys are updated in their place.
 * @template T
 * @param {HTMLElement} parent
 * @param {T[]} items
 * @param {(item: T) => string} keyOf
 * @param {(item: T) => HTMLElement & {update?: (item: T) => void}} make
 */
export function keyed(parent, items, keyOf, make) {
  const known = new Map(
    Array.from(parent.children, (child) => [/** @type {HTMLElement} */ (child).dataset.item, child]),
  );
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    /** @type {any} */
    let node = known.get(key);
    if (node) known.delete(key);
    else {
      node = make(item);
      node.dataset.item = key;
    }
    node.update?.(item);
    if (node === next) next = next?.nextElementSibling ?? null;
    else parent.insertBefore(node, next);
  }
  for (const gone of known.values()) gone.remove();
}
