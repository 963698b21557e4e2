// object: inotify, events that stay unread
// status: refused: events of inotify
// note: kept as soon as they are read
#include "object.h"
#include <sys/inotify.h>
#include <sys/stat.h>

int main(void) {
    int fd = inotify_init1(0);
    CHECK(inotify_add_watch(fd, "/tmp", IN_CREATE) == 1 && !mkdir("/tmp/made", 0700));
    ready();
    while (go_on()) {}
    PASS();
}
