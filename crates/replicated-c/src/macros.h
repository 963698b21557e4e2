/* -------------------------------------------------------------------------------------------------------------------
 * What programs use. Needs GCC or Clang, for statics that make themselves known before `main` and for pointers that end
 * with their block.
 *
 * Fields of a replicated struct are listed once, in a macro:
 *
 *     #define ACCOUNT(X)                  \
 *         X(FIELD, uint64_t, balance)     \
 *         X(CHARS, owner, 32)             \
 *         X(ARRAY, uint32_t, days, 7)     \
 *         X(STRUCT, point, where)         \
 *         X(LOCAL, int, socket)
 *     OUTLIVE_STRUCT(account, ACCOUNT)
 *
 * which declares `struct account` and tells the library of it: a field that is added to the list is replicated.
 *
 * | form | field |
 * |---|---|
 * | `FIELD, type, name` | a number: `int8_t` to `uint64_t`, `int`, `unsigned`, `size_t`, `bool`, `char`, `float`, `double` |
 * | `ADDED, type, name` | the same, and zero where a primary of an older version has none |
 * | `RENAMED, type, name, was` | the same, called `was` in an older version |
 * | `CHARS, name, size` | a text of up to `size` bytes, in an array of `char` |
 * | `OCTETS, name, size` | `size` bytes |
 * | `ARRAY, type, name, count` | numbers in a row |
 * | `STRUCT, tag, name` | another replicated struct |
 * | `STRUCTS, tag, name, count` | replicated structs in a row |
 * | `LOCAL, type, name` | what each side has on its own: not replicated; zero at a takeover, and in an element that comes back by undoing |
 *
 * A pointer, a descriptor, a lock is none of these: write a key for a pointer, a replicated function for what is opened,
 * `LOCAL` for what is rebuilt.
 * ---------------------------------------------------------------------------------------------------------------- */

#if !defined(__GNUC__)
#error "outlive_replicated.h needs GCC or Clang"
#endif

#ifdef __cplusplus
#define OUTLIVE__ALIGNOF(tag) alignof(struct tag)
#define OUTLIVE__EXTERN_C extern "C"
#else
#define OUTLIVE__ALIGNOF(tag) _Alignof(struct tag)
#define OUTLIVE__EXTERN_C extern
#endif
#define OUTLIVE__UNUSED __attribute__((unused))

/* What can be a FIELD. A name that is missing here, in an error of the compiler, is a type that cannot be replicated. */
enum {
    OUTLIVE_CAN_REPLICATE_uint8_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_uint16_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_uint32_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_uint64_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_unsigned = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_size_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_int8_t = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_int16_t = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_int32_t = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_int64_t = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_int = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_char = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_float = OUTLIVE_FLOATING,
    OUTLIVE_CAN_REPLICATE_double = OUTLIVE_FLOATING,
    OUTLIVE_CAN_REPLICATE_bool = OUTLIVE_BOOLEAN,
    OUTLIVE_CAN_REPLICATE__Bool = OUTLIVE_BOOLEAN
};

#define OUTLIVE__DECLARE(form, ...) OUTLIVE__DECLARE_##form(__VA_ARGS__)
#define OUTLIVE__DECLARE_FIELD(type, name) type name;
#define OUTLIVE__DECLARE_ADDED(type, name) type name;
#define OUTLIVE__DECLARE_RENAMED(type, name, was) type name;
#define OUTLIVE__DECLARE_CHARS(name, size) char name[size];
#define OUTLIVE__DECLARE_OCTETS(name, size) uint8_t name[size];
#define OUTLIVE__DECLARE_ARRAY(type, name, count) type name[count];
#define OUTLIVE__DECLARE_STRUCT(tag, name) struct tag name;
#define OUTLIVE__DECLARE_STRUCTS(tag, name, count) struct tag name[count];
#define OUTLIVE__DECLARE_LOCAL(type, name) type name;

#define OUTLIVE__DESCRIBE(form, ...) OUTLIVE__DESCRIBE_##form(__VA_ARGS__)
#define OUTLIVE__FIELD(name, kind, added, size, count, nested, was) \
    {#name, (uint32_t)(kind), added, offsetof(outlive__self, name), size, count, nested, was},
#define OUTLIVE__DESCRIBE_FIELD(type, name) \
    OUTLIVE__FIELD(name, OUTLIVE_CAN_REPLICATE_##type, 0, sizeof(type), 0, 0, 0)
#define OUTLIVE__DESCRIBE_ADDED(type, name) \
    OUTLIVE__FIELD(name, OUTLIVE_CAN_REPLICATE_##type, 1, sizeof(type), 0, 0, 0)
#define OUTLIVE__DESCRIBE_RENAMED(type, name, was) \
    OUTLIVE__FIELD(name, OUTLIVE_CAN_REPLICATE_##type, 0, sizeof(type), 0, 0, #was)
#define OUTLIVE__DESCRIBE_CHARS(name, size) OUTLIVE__FIELD(name, OUTLIVE_CHARS, 0, size, 0, 0, 0)
#define OUTLIVE__DESCRIBE_OCTETS(name, size) OUTLIVE__FIELD(name, OUTLIVE_OCTETS, 0, size, 0, 0, 0)
#define OUTLIVE__DESCRIBE_ARRAY(type, name, count) \
    OUTLIVE__FIELD(name, OUTLIVE_CAN_REPLICATE_##type, 0, sizeof(type), count, 0, 0)
#define OUTLIVE__DESCRIBE_STRUCT(tag, name) \
    OUTLIVE__FIELD(name, OUTLIVE_NESTED, 0, sizeof(struct tag), 0, outlive__type_##tag, 0)
#define OUTLIVE__DESCRIBE_STRUCTS(tag, name, count) \
    OUTLIVE__FIELD(name, OUTLIVE_NESTED, 0, sizeof(struct tag), count, outlive__type_##tag, 0)
#define OUTLIVE__DESCRIBE_LOCAL(type, name)

/* A replicated struct: its tag, and the macro that lists its fields. Its name is what versions of the program find it by. */
#define OUTLIVE_STRUCT(tag, FIELDS)                                                                                   \
    struct tag {                                                                                                      \
        FIELDS(OUTLIVE__DECLARE)                                                                                      \
    };                                                                                                                \
    OUTLIVE__UNUSED static const struct outlive_type *outlive__type_##tag(void) {                                     \
        typedef struct tag outlive__self;                                                                             \
        static const struct outlive_field fields[] = {                                                                \
            FIELDS(OUTLIVE__DESCRIBE){0, OUTLIVE_END, 0, 0, 0, 0, 0, 0}};                                             \
        static const struct outlive_type type = {#tag, sizeof(struct tag), OUTLIVE__ALIGNOF(tag), fields};            \
        return &type;                                                                                                 \
    }

#define OUTLIVE__STATIC(name, form, of)                                                                               \
    struct outlive_static outlive__static_##name = {#name, form, of, 0};                                              \
    __attribute__((constructor, unused)) static void outlive__register_##name(void) {                                 \
        outlive_register(&outlive__static_##name);                                                                    \
    }

/* Bytes for a key or an element: of any object, of a text, of a pointer and a length. */
#define OUTLIVE_OF(object) outlive_lend(&(object), sizeof(object))
OUTLIVE__UNUSED static inline struct outlive_bytes outlive_lend(const void *data, size_t length) {
    struct outlive_bytes bytes;
    bytes.data = data;
    bytes.length = length;
    return bytes;
}
OUTLIVE__UNUSED static inline struct outlive_bytes outlive_string(const char *text) {
    return outlive_lend(text, text ? strlen(text) : 0);
}

OUTLIVE__UNUSED static inline void outlive__end(void *variable) {
    void *pointer;
    memcpy(&pointer, variable, sizeof pointer);
    outlive_end(pointer);
}
#define OUTLIVE__SCOPE(pointer, it)                                                                                   \
    for (__typeof__(pointer) it __attribute__((cleanup(outlive__end))) = pointer, outlive__once_##it = it;            \
         outlive__once_##it; outlive__once_##it = 0)

/* Blocks in which `it` is a pointer to a variable, or to the element of a key or at a place. They may be left in any way.
 * The block is passed over if there is no such element, and if it cannot be had: then the transaction has failed, and its
 * commit says so. */
#define OUTLIVE_READ(name, it) OUTLIVE__SCOPE(name##_read(), it)
#define OUTLIVE_WRITE(name, it) OUTLIVE__SCOPE(name##_write(), it)
#define OUTLIVE_READ_AT(name, key, it) OUTLIVE__SCOPE(name##_read(key), it)
#define OUTLIVE_WRITE_AT(name, key, it) OUTLIVE__SCOPE(name##_write(key), it)

/* A replicated variable: one struct. Like all that follow, `OUTLIVE_…` declares and defines it; for what several sources use,
 * `OUTLIVE_DECLARE_…` belongs in their header and `OUTLIVE_DEFINE_…` in one of them. */
#define OUTLIVE_DECLARE_REPLICATED(tag, name)                                                                         \
    OUTLIVE__EXTERN_C struct outlive_static outlive__static_##name;                                                   \
    OUTLIVE__UNUSED static inline const struct tag *name##_read(void) {                                               \
        return (const struct tag *)outlive_variable_read(&outlive__static_##name);                                    \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline struct tag *name##_write(void) {                                                    \
        return (struct tag *)outlive_variable_write(&outlive__static_##name);                                         \
    }
#define OUTLIVE_REPLICATED(tag, name)                                                                                 \
    OUTLIVE_DECLARE_REPLICATED(tag, name)                                                                             \
    OUTLIVE_DEFINE_REPLICATED(tag, name)
#define OUTLIVE_DEFINE_REPLICATED(tag, name) OUTLIVE__STATIC(name, OUTLIVE_FORM_VARIABLE, outlive__type_##tag)

/* A replicated map: from keys, which are bytes, to structs. */
#define OUTLIVE_DECLARE_MAP(tag, name)                                                                                \
    OUTLIVE__DECLARE_MAP(name)                                                                                        \
    OUTLIVE__UNUSED static inline const struct tag *name##_read(struct outlive_bytes key) {                           \
        return (const struct tag *)outlive_map_read(&outlive__static_##name, key, 0);                                 \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline struct tag *name##_write(struct outlive_bytes key) {                                \
        return (struct tag *)outlive_map_write(&outlive__static_##name, key);                                         \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_put(struct outlive_bytes key, const struct tag *value) {   \
        return outlive_map_put(&outlive__static_##name, key, outlive_lend(value, sizeof *value));                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_copy(struct outlive_bytes key, struct tag *to) {           \
        return outlive_map_copy(&outlive__static_##name, key, to, to ? sizeof *to : 0);                               \
    }
#define OUTLIVE_MAP(tag, name)                                                                                        \
    OUTLIVE_DECLARE_MAP(tag, name)                                                                                    \
    OUTLIVE_DEFINE_MAP(tag, name)
#define OUTLIVE_DEFINE_MAP(tag, name) OUTLIVE__STATIC(name, OUTLIVE_FORM_MAP, outlive__type_##tag)

/* A replicated map from keys to bytes of any length. */
#define OUTLIVE_DECLARE_BYTES_MAP(name)                                                                               \
    OUTLIVE__DECLARE_MAP(name)                                                                                        \
    OUTLIVE__UNUSED static inline struct outlive_bytes name##_read(struct outlive_bytes key) {                        \
        struct outlive_bytes found = {0, 0};                                                                          \
        found.data = outlive_map_read(&outlive__static_##name, key, &found.length);                                   \
        return found;                                                                                                 \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_put(struct outlive_bytes key,                              \
                                                               struct outlive_bytes value) {                          \
        return outlive_map_put(&outlive__static_##name, key, value);                                                  \
    }
#define OUTLIVE_BYTES_MAP(name)                                                                                       \
    OUTLIVE_DECLARE_BYTES_MAP(name)                                                                                   \
    OUTLIVE_DEFINE_BYTES_MAP(name)
#define OUTLIVE_DEFINE_BYTES_MAP(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_MAP, 0)

#define OUTLIVE__DECLARE_MAP(name)                                                                                    \
    OUTLIVE__DECLARE_COLLECTION(name)                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_remove(struct outlive_bytes key) {                         \
        return outlive_map_remove(&outlive__static_##name, key);                                                      \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline bool name##_has(struct outlive_bytes key) {                                         \
        return outlive_map_copy(&outlive__static_##name, key, 0, 0) == OUTLIVE_OK;                                    \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_each(struct outlive_bytes from, outlive_visit_entry visit, \
                                                                void *context) {                                      \
        return outlive_map_each(&outlive__static_##name, from, visit, context);                                       \
    }
#define OUTLIVE__DECLARE_COLLECTION(name)                                                                             \
    OUTLIVE__EXTERN_C struct outlive_static outlive__static_##name;                                                   \
    OUTLIVE__UNUSED static inline size_t name##_count(void) { return outlive_count(&outlive__static_##name); }        \
    OUTLIVE__UNUSED static inline enum outlive_code name##_clear(void) {                                              \
        return outlive_clear(&outlive__static_##name);                                                                \
    }

/* A replicated list of structs, which grows and shrinks at both ends. */
#define OUTLIVE_DECLARE_LIST(tag, name)                                                                               \
    OUTLIVE__DECLARE_LIST(name)                                                                                       \
    OUTLIVE__UNUSED static inline const struct tag *name##_read(size_t place) {                                       \
        return (const struct tag *)outlive_list_read(&outlive__static_##name, place, 0);                              \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline struct tag *name##_write(size_t place) {                                            \
        return (struct tag *)outlive_list_write(&outlive__static_##name, place);                                      \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_put(size_t place, const struct tag *value) {               \
        return outlive_list_put(&outlive__static_##name, place, outlive_lend(value, sizeof *value));                  \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_push(const struct tag *value) {                            \
        return outlive_list_push(&outlive__static_##name, outlive_lend(value, sizeof *value), 0);                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_push_front(const struct tag *value) {                      \
        return outlive_list_push(&outlive__static_##name, outlive_lend(value, sizeof *value), 1);                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_pop(struct tag *to) {                                      \
        return outlive_list_pop(&outlive__static_##name, 0, to, to ? sizeof *to : 0);                                 \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_pop_front(struct tag *to) {                                \
        return outlive_list_pop(&outlive__static_##name, 1, to, to ? sizeof *to : 0);                                 \
    }
#define OUTLIVE_LIST(tag, name)                                                                                       \
    OUTLIVE_DECLARE_LIST(tag, name)                                                                                   \
    OUTLIVE_DEFINE_LIST(tag, name)
#define OUTLIVE_DEFINE_LIST(tag, name) OUTLIVE__STATIC(name, OUTLIVE_FORM_LIST, outlive__type_##tag)

/* A replicated list of bytes of any length; what is taken out is in a buffer that is given back. */
#define OUTLIVE_DECLARE_BYTES_LIST(name)                                                                              \
    OUTLIVE__DECLARE_LIST(name)                                                                                       \
    OUTLIVE__UNUSED static inline struct outlive_bytes name##_read(size_t place) {                                    \
        struct outlive_bytes found = {0, 0};                                                                          \
        found.data = outlive_list_read(&outlive__static_##name, place, &found.length);                                \
        return found;                                                                                                 \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_put(size_t place, struct outlive_bytes value) {            \
        return outlive_list_put(&outlive__static_##name, place, value);                                               \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_push(struct outlive_bytes value) {                         \
        return outlive_list_push(&outlive__static_##name, value, 0);                                                  \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_push_front(struct outlive_bytes value) {                   \
        return outlive_list_push(&outlive__static_##name, value, 1);                                                  \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_take(struct outlive_buffer *to) {                          \
        return outlive_list_take(&outlive__static_##name, 0, to);                                                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_take_front(struct outlive_buffer *to) {                    \
        return outlive_list_take(&outlive__static_##name, 1, to);                                                     \
    }
#define OUTLIVE_BYTES_LIST(name)                                                                                      \
    OUTLIVE_DECLARE_BYTES_LIST(name)                                                                                  \
    OUTLIVE_DEFINE_BYTES_LIST(name)
#define OUTLIVE_DEFINE_BYTES_LIST(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_LIST, 0)
#define OUTLIVE__DECLARE_LIST(name)                                                                                   \
    OUTLIVE__DECLARE_COLLECTION(name)                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_each(outlive_visit_element visit, void *context) {         \
        return outlive_list_each(&outlive__static_##name, visit, context);                                            \
    }

/* A replicated number that is added to. */
#define OUTLIVE_DECLARE_COUNTER(name)                                                                                 \
    OUTLIVE__EXTERN_C struct outlive_static outlive__static_##name;                                                   \
    OUTLIVE__UNUSED static inline int64_t name##_get(void) { return outlive_counter_get(&outlive__static_##name); }   \
    OUTLIVE__UNUSED static inline enum outlive_code name##_add(int64_t difference) {                                  \
        return outlive_counter_add(&outlive__static_##name, difference);                                              \
    }
#define OUTLIVE_COUNTER(name)                                                                                         \
    OUTLIVE_DECLARE_COUNTER(name)                                                                                     \
    OUTLIVE_DEFINE_COUNTER(name)
#define OUTLIVE_DEFINE_COUNTER(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_COUNTER, 0)

/* A replicated long text in UTF-8, of which parts are replaced. */
#define OUTLIVE_DECLARE_TEXT(name)                                                                                    \
    OUTLIVE__DECLARE_COLLECTION(name)                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_append(struct outlive_bytes text) {                        \
        return outlive_text_replace(&outlive__static_##name, SIZE_MAX, 0, text);                                      \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_replace(size_t start, size_t gone,                         \
                                                                   struct outlive_bytes comes) {                      \
        return outlive_text_replace(&outlive__static_##name, start, gone, comes);                                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_get(struct outlive_buffer *to) {                           \
        return outlive_text_get(&outlive__static_##name, to);                                                         \
    }
#define OUTLIVE_TEXT(name)                                                                                            \
    OUTLIVE_DECLARE_TEXT(name)                                                                                        \
    OUTLIVE_DEFINE_TEXT(name)
#define OUTLIVE_DEFINE_TEXT(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_TEXT, 0)

/* A replicated function: `int open(struct outlive_bytes arguments, void **value)`, when the backup calls it (an
 * `outlive_policy`), and what undoes it (`void undo(void *value)`, or 0). What it opened is kept under a key of HANDLES. */
#define OUTLIVE_FUNCTION(open, policy, undo)                                                                          \
    OUTLIVE__UNUSED static const struct outlive_function outlive__function_##open = {#open, policy, open, undo};      \
    __attribute__((constructor, unused)) static void outlive__register_function_##open(void) {                        \
        outlive_register_function(&outlive__function_##open);                                                         \
    }
#define OUTLIVE_DECLARE_HANDLES(name)                                                                                 \
    OUTLIVE__DECLARE_COLLECTION(name)                                                                                 \
    OUTLIVE__UNUSED static inline void *name##_use(struct outlive_bytes key) {                                        \
        return outlive_handle_use(&outlive__static_##name, key);                                                      \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_close(struct outlive_bytes key) {                          \
        return outlive_handle_close(&outlive__static_##name, key);                                                    \
    }
#define OUTLIVE_HANDLES(name)                                                                                         \
    OUTLIVE_DECLARE_HANDLES(name)                                                                                     \
    OUTLIVE_DEFINE_HANDLES(name)
#define OUTLIVE_DEFINE_HANDLES(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_HANDLES, 0)
#define OUTLIVE_OPEN(name, key, function, arguments) \
    outlive_handle_open(&outlive__static_##name, key, &outlive__function_##function, arguments)

/* `write` and `send` for what leaves the process: -1 with `EBUSY`, and nothing is sent, while what this thread changed is not
 * safe. `outlive_send` raises no signal. */
OUTLIVE__UNUSED static inline ssize_t outlive_write(int descriptor, const void *data, size_t length) {
    if (outlive_output_check() != OUTLIVE_OK) {
        errno = EBUSY;
        return -1;
    }
    return write(descriptor, data, length);
}
OUTLIVE__UNUSED static inline ssize_t outlive_send(int descriptor, const void *data, size_t length) {
    if (outlive_output_check() != OUTLIVE_OK) {
        errno = EBUSY;
        return -1;
    }
    return send(descriptor, data, length, MSG_NOSIGNAL);
}
