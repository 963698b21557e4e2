/* Shadow variables: fields that a fix needs in objects that exist already, kept beside them. The recorder's compilers find this header
 * (`#include <outlive_shadow.h>`); what uses it is for the patch alone:
 *
 *     struct session { ... };                        // as it is, without a field more
 *
 *     enum { TRIES = 1 };                            // a number for each field
 *     long *tries = outlive_shadow_make(session, TRIES, sizeof *tries);
 *     if (tries && ++*tries > 3) ...
 *     outlive_shadow_free_all(session);              // where the session is freed
 *
 * Any thread may call any of the functions; none may be called by a signal handler or in a hook, but outlive_shadow_forget. What
 * is in a field is for its users to keep from each other, as with any field.
 *
 * The table is one for all patches of a program (of a library its own): a patch over another finds what that one has kept. */
#ifndef OUTLIVE_SHADOW_H
#define OUTLIVE_SHADOW_H

#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

struct outlive_shadow {
    struct outlive_shadow *next;
    const void *object;
    unsigned long id, generation;
    /* Aligned for whatever is kept, as malloc does it. */
    __attribute__((aligned(16))) unsigned char field[];
};

enum { OUTLIVE_SHADOW_ROWS = 1024 };

struct outlive_shadow_row {
    struct outlive_shadow *first;
    int is_taken;
};

/* Raised when the layout changes: patches with one layout share a table, which the patcher knows by its name. */
__attribute__((weak)) struct outlive_shadows {
    unsigned long generation;
    struct outlive_shadow_row rows[OUTLIVE_SHADOW_ROWS];
} outlive_patch_shadows_1;

/* Objects lie at multiples of 16 mostly: the bits above say more (Knuth, volume 3, 6.4, multiplicative hashing). */
static inline struct outlive_shadow_row *outlive_shadow_row(const void *object) {
    unsigned long hash = ((unsigned long)object >> 4) * 0x9e3779b97f4a7c15ul;
    return &outlive_patch_shadows_1.rows[hash >> 54];
}

static inline void outlive_shadow_take(struct outlive_shadow_row *row) {
    while (__atomic_exchange_n(&row->is_taken, 1, __ATOMIC_ACQUIRE)) {
        /* sched_yield(2): whoever has it may wait for this processor. */
        long result = 24;
        __asm__ volatile("syscall" : "+a"(result) : : "rcx", "r11", "memory");
    }
}

static inline void outlive_shadow_give(struct outlive_shadow_row *row) {
    __atomic_store_n(&row->is_taken, 0, __ATOMIC_RELEASE);
}

/* The link that leads to a field, or the last; the row is taken. Fields that were forgotten are put aside on the way, to be freed. */
static inline struct outlive_shadow **outlive_shadow_find(struct outlive_shadow_row *row, const void *object, unsigned long id,
                                                          struct outlive_shadow **aside) {
    unsigned long generation = __atomic_load_n(&outlive_patch_shadows_1.generation, __ATOMIC_ACQUIRE);
    struct outlive_shadow **link = &row->first;
    while (*link) {
        struct outlive_shadow *shadow = *link;
        if (shadow->generation != generation) {
            *link = shadow->next;
            shadow->next = *aside;
            *aside = shadow;
        } else if (shadow->object == object && shadow->id == id) {
            break;
        } else {
            link = &shadow->next;
        }
    }
    return link;
}

static inline void outlive_shadow_drop(struct outlive_shadow *shadow) {
    while (shadow) {
        struct outlive_shadow *next = shadow->next;
        free(shadow);
        shadow = next;
    }
}

/* The field of this number of an object, or NULL if it has none. */
static inline void *outlive_shadow_get(const void *object, unsigned long id) {
    struct outlive_shadow_row *row = outlive_shadow_row(object);
    struct outlive_shadow *aside = NULL;
    outlive_shadow_take(row);
    struct outlive_shadow *found = *outlive_shadow_find(row, object, id, &aside);
    outlive_shadow_give(row);
    outlive_shadow_drop(aside);
    return found ? found->field : NULL;
}

/* The same, and if there is none a new one of zero bytes; of several threads one makes it. NULL if there is no memory. */
static inline void *outlive_shadow_make(const void *object, unsigned long id, unsigned long size) {
    void *known = outlive_shadow_get(object, id);
    if (known) return known;
    struct outlive_shadow *made = (struct outlive_shadow *)calloc(1, sizeof *made + size), *aside = NULL;
    if (!made) return NULL;
    made->object = object;
    made->id = id;
    struct outlive_shadow_row *row = outlive_shadow_row(object);
    outlive_shadow_take(row);
    made->generation = __atomic_load_n(&outlive_patch_shadows_1.generation, __ATOMIC_ACQUIRE);
    struct outlive_shadow **link = outlive_shadow_find(row, object, id, &aside), *found = *link;
    if (!found) found = *link = made;
    outlive_shadow_give(row);
    outlive_shadow_drop(aside);
    if (found != made) free(made);
    return found->field;
}

/* Frees a field of an object, if it has it. */
static inline void outlive_shadow_free(const void *object, unsigned long id) {
    struct outlive_shadow_row *row = outlive_shadow_row(object);
    struct outlive_shadow *aside = NULL;
    outlive_shadow_take(row);
    struct outlive_shadow **link = outlive_shadow_find(row, object, id, &aside), *found = *link;
    if (found) {
        *link = found->next;
        found->next = aside;
        aside = found;
    }
    outlive_shadow_give(row);
    outlive_shadow_drop(aside);
}

/* Frees all fields of an object: where it is freed itself. */
static inline void outlive_shadow_free_all(const void *object) {
    struct outlive_shadow_row *row = outlive_shadow_row(object);
    struct outlive_shadow *aside = NULL, **link = &row->first;
    outlive_shadow_take(row);
    while (*link) {
        struct outlive_shadow *shadow = *link;
        if (shadow->object != object) {
            link = &shadow->next;
            continue;
        }
        *link = shadow->next;
        shadow->next = aside;
        aside = shadow;
    }
    outlive_shadow_give(row);
    outlive_shadow_drop(aside);
}

/* Forgets all fields of all objects; their memory is freed by later calls. For `outlive_patch_revert`: what the old code frees
 * keeps its fields, and another object may come to lie there. */
static inline void outlive_shadow_forget(void) {
    __atomic_add_fetch(&outlive_patch_shadows_1.generation, 1, __ATOMIC_ACQ_REL);
}

#ifdef __cplusplus
}
#endif
#endif
