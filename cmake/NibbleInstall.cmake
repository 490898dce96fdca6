# The C++ API as a shared library, and what `make install` puts where.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(nibble_api SHARED src/api/nibble.cpp)
add_library(nibble::nibble ALIAS nibble_api)
set_target_properties(nibble_api PROPERTIES
  OUTPUT_NAME nibble EXPORT_NAME nibble VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
target_compile_features(nibble_api PUBLIC cxx_std_20)
target_include_directories(nibble_api PUBLIC
  $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(nibble_api PRIVATE
  $<BUILD_INTERFACE:nibble_flags> $<BUILD_INTERFACE:nibble_engine> $<BUILD_INTERFACE:nibble_models>
  $<BUILD_INTERFACE:nibble_kernels> $<BUILD_INTERFACE:nibble_ops>)

install(TARGETS nibble_api EXPORT nibble-targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(NIBBLE_WITH_CUDA)
  install(TARGETS nibble_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(DIRECTORY include/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT nibble-targets NAMESPACE nibble:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/nibble-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES cmake/nibble-config.cmake ${CMAKE_BINARY_DIR}/nibble-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
if(TARGET nibble)
  install(TARGETS nibble RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  foreach(script benchmark_gptq benchmark_bettertransformer benchmark_bettertransformer_vit)
    set(link "\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_BINDIR}/${script}")
    install(CODE "file(CREATE_LINK nibble \"${link}\" SYMBOLIC)")
  endforeach()
endif()

# The examples are built with everything else, so that they cannot go stale.
foreach(example chat encode_texts generate_tokens)
  add_executable(example_${example} examples/${example}.cpp)
  target_link_libraries(example_${example} PRIVATE nibble::nibble $<BUILD_INTERFACE:nibble_flags>)
endforeach()
