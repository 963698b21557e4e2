#include "shadow.h"
#ifdef FIXED
#include <outlive_shadow.h>
long tries_of(struct session *session) {
    long *tries = (long *)outlive_shadow_get(session, 1);
    return tries ? *tries : -1;
}
#else
long tries_of(struct session *session) { return -session->number / 1000 - 1; }
#endif
