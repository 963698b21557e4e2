// object: inotify, watching single files, of which some are removed or renamed
// status: captured
// note: IN_ONESHOT is kept; numbers are not given twice
#include "object.h"
#include <fcntl.h>
#include <sys/inotify.h>

int main(void) {
    char text[4096];
    struct inotify_event *event = (struct inotify_event *)text;
    int fd = inotify_init1(IN_NONBLOCK), count = 0, numbers = 0;
    int file = open("/tmp/old", O_CREAT | O_RDWR, 0600);
    int kept = inotify_add_watch(fd, "/tmp/old", IN_MODIFY);
    numbers = kept;
    CHECK_EQUAL(kept, 1);
    CHECK_EQUAL(inotify_add_watch(fd, "/etc/passwd", IN_MODIFY | IN_ATTRIB), 2);
    numbers = 2;
    CHECK(!rename("/tmp/old", "/tmp/new"));
    ready();
    do {
        CHECK(write(file, "x", 1) == 1);
        CHECK(read(fd, text, sizeof text) == sizeof *event);
        CHECK_EQUAL(event->wd, kept);
        CHECK_EQUAL(event->mask, IN_MODIFY);
        int other = open("/tmp/other", O_CREAT | O_RDWR, 0600);
        int once = inotify_add_watch(fd, "/tmp/other", IN_MODIFY | IN_ONESHOT);
        CHECK_EQUAL(once, ++numbers);
        if (count % 2) {
            CHECK(write(other, "x", 1) == 1);
            CHECK(read(fd, text, sizeof text) == 2 * sizeof *event);
            CHECK_EQUAL(event[0].mask, IN_MODIFY);
            CHECK_EQUAL(event[1].mask, IN_IGNORED);
        } else {
            CHECK(!inotify_rm_watch(fd, once));
            CHECK(read(fd, text, sizeof text) == sizeof *event);
            CHECK_EQUAL(event->mask, IN_IGNORED);
        }
        close(other);
        unlink("/tmp/other");
        count++;
    } while (go_on());
    CHECK(inotify_rm_watch(fd, numbers) < 0 && errno == EINVAL);
    CHECK(!inotify_rm_watch(fd, 2));
    PASS();
}
