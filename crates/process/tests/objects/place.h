// Where a thread is in the file system.
#ifndef PLACE_H
#define PLACE_H

#include "object.h"
#include <sys/stat.h>

// That it is in the directory, and has the umask.
static void here(const char *directory, mode_t mask) {
    char now[64];
    CHECK(getcwd(now, sizeof now));
    if (strcmp(now, directory)) FAIL("the directory is %s, not %s", now, directory);
    mode_t was = umask(mask);
    CHECK_EQUAL(was, mask);
}

#endif
